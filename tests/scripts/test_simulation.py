"""The same app on Flower's simulation engine: real Ray workers, real exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fedduet.scripts.simulate import main

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
def test_a_run_on_ray_equals_the_run_in_process(overrides, tmp_path):
    off = "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}"
    common = [
        entry for entry in overrides if not entry.startswith(("run.folder", "federation"))
    ] + [off, "privacy.seeded_noise=true"]
    accuracy = {}
    for kind in ("inprocess", "simulation"):
        command = [
            sys.executable,
            "-m",
            "fedduet.scripts.run",
            *common,
            f"federation={kind}",
            f"run.folder={tmp_path}/{kind}",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        accuracy[kind] = json.loads((tmp_path / kind / "summary.json").read_text())[
            "accuracy_per_client"
        ]
    assert accuracy["simulation"] == accuracy["inprocess"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--app", "/nowhere", "--num-supernodes", "2"], "no pyproject.toml"),
        (["--app", str(ROOT), "--num-supernodes", "0"], "found 0; allowed: at least 1"),
        (
            ["--app", str(ROOT), "--num-supernodes", "2", "--run-config", "sed=1"],
            "unknown key 'sed'; did you mean seed",
        ),
        (["--app", str(ROOT), "--num-supernodes", "2", "--backend-config", "{"], "not JSON"),
    ],
)
def test_flower_simulation_says_what_cannot_work(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
