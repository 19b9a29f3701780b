"""The command line: exit codes tell the truth, and a mistyped word gets the nearest one."""

import os
import subprocess
import sys

import pytest


def fedduet(*arguments):
    command = [sys.executable, "-m", "fedduet.scripts.run", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"COLUMNS": "200"}
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("strategy=fdtk",), "unknown choice 'fdtk'; did you mean fdkt?"),
        (("privacy.epsilonn=3",), "unknown key 'privacy.epsilonn'; did you mean privacy.epsilon"),
        (("simulate",), "'simulate' is neither a command"),
        (
            ("privacy.epsilon=0", "federation=inprocess"),
            "privacy.epsilon: found 0.0; allowed: above 0",
        ),
    ],
)
def test_mistakes_get_a_sentence_and_exit_code_2(arguments, says):
    done = fedduet(*arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_cannot_go_on_exits_1_and_one_that_completes_0(overrides, tmp_path):
    off = (
        "strategy.baselines={local: false, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}"
    )
    keep = f"federation.state_folder={tmp_path}/state"
    good = fedduet(*overrides, off, keep)
    assert good.returncode == 0, good.stderr
    assert "test accuracy" in " ".join(good.stdout.split()) and "epsilon:" in good.stdout
    written = (tmp_path / "run" / "demonstrations.jsonl").read_text()  # the noise may leave none
    assert ("demonstrations (DP, up)" in good.stdout) == bool(written)
    assert "LLM-written data (down)" in good.stdout
    spent = fedduet(
        *[entry for entry in overrides if not entry.startswith("run.folder")],
        off,
        keep,
        f"run.folder={tmp_path}/second",
    )
    assert (
        spent.returncode == 1
        and "0 of 2 sites answered" in spent.stderr
        and "Traceback" not in spent.stderr
    )
