"""The table over several runs: paired differences worked out by hand."""

import json

import pytest
from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting.table import main, read_summaries, table


def summary(local, fdkt, pooled, seed=0):
    by_site = {
        site: {"local": a, "fdkt": b, "pooled": c}
        for site, a, b, c in zip("xy", local, fdkt, pooled, strict=True)
    }
    means = {"local": sum(local) / 2, "fdkt": sum(fdkt) / 2, "pooled": sum(pooled) / 2}
    trained = {"steps": 12.0, "private_passes": 6.0, "checkpoint": "last"}
    return {
        "status": "completed",
        "strategy": "fdkt",
        "seed": seed,
        "accuracy": means,
        "accuracy_per_client": by_site,
        "training": {
            "local": trained | {"generated_passes": 0.0},
            "fdkt": trained | {"generated_passes": 1.5},
        },
        "seconds": {"total": 10.0},
        "epsilon": {"x": 8.0},
        "clients": 2,
    }


def test_differences_are_of_seeds_and_one_seed_has_none():
    one = summary([0.5, 0.5], [0.5, 0.7], [0.8, 0.8])
    other = summary([0.7, 0.8], [0.8, 1.0], [0.9, 1.0], seed=1)
    lines = table([one, other]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["local", "fdkt", "pooled"]
    # seeds differ by 10 and 15: t(0.975, 1) = 12.706 times 3.5355 / sqrt(2); sites do not count
    assert "+12.5 [-19.3, +44.3] |  | 12 | 6.0, 1.5 | last |" in lines[3]
    assert "| fdkt - local | exploratory | +12.5 [-19.3, +44.3] |" in "\n".join(lines)
    alone = table([one])
    assert "| fdkt | 0.600 | +10.0 |  | 12 | 6.0, 1.5 | last |" in alone
    assert "One seed: there is no interval over methods" in alone
    assert "[" not in alone.replace("[95 % over seeds]", "")


def test_a_closed_gap_has_an_interval_over_seeds():
    runs = [summary([0.6, 0.6], [0.7, 0.7], [0.8, 0.8], seed) for seed in range(3)]
    assert "| fdkt | 0.700 [0.700, 0.700] | +10.0 [+10.0, +10.0] | 0.50 [0.50, 0.50] |" in table(
        runs
    )


def test_an_unfinished_run_is_named(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"no summary\.json"):
        read_summaries([tmp_path])
    (tmp_path / "summary.json").write_text(json.dumps(summary([0.5, 0.6], [0.6, 0.7], [0.7, 0.8])))
    assert main([str(tmp_path)]) == 0
    assert "epsilon at most 8.00" in capsys.readouterr().out
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed"}))
    with pytest.raises(ConfigError, match="ended as failed"):
        read_summaries([tmp_path])
