"""The table over several runs: paired differences worked out by hand."""

import json

import pytest
from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting.table import main, read_summaries, table


def summary(local, fdkt, pooled):
    by_site = {
        site: {"local": a, "fdkt": b, "pooled": c}
        for site, a, b, c in zip("xy", local, fdkt, pooled, strict=True)
    }
    means = {"local": sum(local) / 2, "fdkt": sum(fdkt) / 2, "pooled": sum(pooled) / 2}
    return {
        "status": "completed",
        "strategy": "fdkt",
        "accuracy": means,
        "accuracy_per_client": by_site,
        "seconds": {"total": 10.0},
        "epsilon": {"x": 8.0},
        "clients": 2,
    }


def test_differences_are_paired_and_the_gap_is_of_the_means():
    lines = table(
        [summary([0.5, 0.6], [0.6, 0.7], [0.7, 0.8]), summary([0.7, 0.8], [0.8, 0.9], [0.9, 1.0])]
    ).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["local", "fdkt", "pooled"]
    # every pair differs by 10: no spread, though accuracies do
    assert "| fdkt | 0.750 | +10.0 [+10.0, +10.0] | 0.50 |" in lines
    spread = table([summary([0.5, 0.5], [0.5, 0.7], [0.8, 0.8])])
    assert "+10.0 [-117.1, +137.1]" in spread  # t(0.975, 1) = 12.706 times 14.142 / sqrt(2)


def test_an_unfinished_run_is_named(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"no summary\.json"):
        read_summaries([tmp_path])
    (tmp_path / "summary.json").write_text(json.dumps(summary([0.5, 0.6], [0.6, 0.7], [0.7, 0.8])))
    assert main([str(tmp_path)]) == 0
    assert "epsilon at most 8.00" in capsys.readouterr().out
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed"}))
    with pytest.raises(ConfigError, match="ended as failed"):
        read_summaries([tmp_path])
