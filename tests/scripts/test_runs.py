"""Runs that are there: listed, opened, compared."""

from __future__ import annotations

import json
import webbrowser

import pytest
import yaml
from fedduet.conf.check import ConfigError
from fedduet.scripts.runs import diff, list_runs, open_report


def put(folder, accuracy, epsilon, seed):
    folder.mkdir(parents=True)
    config = {"seed": seed, "privacy": {"epsilon": epsilon}, "run": {"folder": str(folder)}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    summary = {
        "strategy": "fdkt", "status": "completed", "seconds": {"total": 12.0},
        "accuracy": accuracy, "accuracy_per_client": {"a": accuracy}, "epsilon": {"a": epsilon},
        "llm": {"prompt_tokens": 5, "new_tokens": 7}, "wire": {"up_bytes": 1, "down_bytes": 2},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_runs_and_jobs_of_sweeps_are_listed_with_their_state(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a narrow terminal folds long paths
    put(tmp_path / "one", {"local": 0.5, "fdkt": 0.625}, 8.0, 0)
    put(tmp_path / "sweep-1" / "seed=1", {"fdkt": 0.7}, 4.0, 1)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text("seed: 0\n")
    assert list_runs(["."]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert "completedfdkt0.6258.0012" in said and "seed=1completedfdkt0.7004.0012" in said
    assert "stoppedunfinished" in said
    with pytest.raises(ConfigError, match="has no runs"):
        list_runs([str(tmp_path / "nowhere")])


def test_two_runs_differ_in_settings_and_figures(tmp_path, capsys):
    one = put(tmp_path / "one", {"local": 0.5, "fdkt": 0.625}, 8.0, 0)
    two = put(tmp_path / "two", {"local": 0.5, "fdkt": 0.75, "zero_shot": 0.5}, 4.0, 0)
    assert diff([str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert "privacy.epsilon" in said and "run.folder" not in said and "seed" not in said
    lines = {line.split("│")[1].strip(): line for line in said.splitlines() if "│" in line}
    assert "+0.125" in lines["accuracy of fdkt"] and "-4" in lines["epsilon"]
    assert "-" in lines["accuracy of zero_shot"]
    diff([str(one), str(one)])
    assert "no setting differs" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        diff([str(one), str(tmp_path)])


def test_a_report_is_opened_by_its_address(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    one = put(tmp_path / "one", {"fdkt": 0.625}, 8.0, 0)
    (one / "report.html").write_text("a page")
    assert open_report([str(one)]) == 0
    assert opened == [(one / "report.html").as_uri()] and opened[0] in capsys.readouterr().out
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="make it: fedduet sweep-report"):
        open_report([str(tmp_path)])
