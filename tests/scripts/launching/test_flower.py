"""What Flower starts ends as what `fedduet` starts: one folder, the table, the report."""

from __future__ import annotations

import json
import re

import pytest
from fedduet.clients.app import app as client_app
from fedduet.scripts.launching.federation import run_inprocess
from fedduet.scripts.launching.flower import app
from fedduet.scripts.launching.launch import launch

from fedduet import conf

OFF = "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}"


def test_a_run_of_flower_ends_with_table_report_and_one_folder(
    overrides, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = [one for one in overrides if not one.startswith("run.folder")]
    run_inprocess(app, client_app, conf.compose([*given, OFF]), 2)
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"fdkt-.*-seed\d+-1", folder.name)
    assert (folder / "sites" / "coffee" / "ledger.jsonl").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['accuracy']['fdkt']:.3f}" in said
    assert "fdkt gained" in said or "fdkt lost" in said
    assert str(folder) in said.replace("\n", "") and (folder / "report.html").is_file()


def test_a_stopped_run_says_where_it_is_and_what_goes_on(overrides, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedduet.scripts.launching.launch.run_apps", stop)
    with pytest.raises(KeyboardInterrupt, match=f"is in {tmp_path}/run, and this goes on") as told:
        launch(conf.compose(overrides), "fedduet seed=1")
    assert str(told.value).endswith(f"fedduet seed=1 run.folder={tmp_path}/run")
