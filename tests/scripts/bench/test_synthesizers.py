"""The bench of synthesizers on tiny models: its measures tell like from unlike, and one command
prints a row for every arm."""

import json
import subprocess
import sys

import numpy as np
import pytest
from fedduet.scripts.bench.synthesizers import main, mauve_like


def test_mauve_like_is_one_for_equal_sets_and_little_for_sets_apart():
    draw = np.random.default_rng(0)
    one, same, apart = (
        draw.normal(0, 1, (200, 8)),
        draw.normal(0, 1, (200, 8)),
        draw.normal(6, 1, (200, 8)),
    )
    assert mauve_like(one, one, 0) == pytest.approx(1.0, abs=1e-6)
    assert mauve_like(one, same, 0) > 0.8 > 0.2 > mauve_like(one, apart, 0)


def test_one_command_prints_a_row_for_every_arm(tiny_model, private_csv, capsys):
    given = [
        *(str(private_csv / "train.csv"), "--model", str(tiny_model), "--name", "tiny"),
        *("--where", "domain=coffee", "--labels", "0,1", "--words", "negative,positive"),
        *(
            "--records",
            "20",
            "--epsilons",
            "2,8",
            "--seeds",
            "1",
            "--arms",
            "public,clipped,argmax",
        ),
        *("--per-label", "3", "--tokens", "4", "--prompt-tokens", "32", "--examples", "1"),
    ]
    assert main(given) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["task"] == "tiny" and rows[0]["oracle"] > 0.5
    arms = [(row["arm"], row.get("epsilon")) for row in rows[2:]]
    assert arms == [("public", 2), ("clipped", 2), ("argmax", 2), ("clipped", 8), ("argmax", 8)]
    tight, loose = (row for row in rows if row.get("arm") == "clipped")
    assert tight["B"] == loose["B"] == 10 and 0 < 3 * tight["clip"] < loose["clip"]
    assert all(row["texts"] >= 2 and 0 <= row["receiver"] <= 1 for row in rows[2:])


def test_private_prediction_needs_few_packages():
    """So that the bench runs on a machine that has torch, transformers, numpy and scikit-learn
    alone."""
    program = (
        "import sys\n"
        "for name in ('flwr', 'hydra', 'peft', 'pydantic', 'cryptography', 'dp_accounting',"
        " 'opacus', 'omegaconf'):\n"
        "    sys.modules[name] = None\n"
        "import fedduet.scripts.bench.synthesizers\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
