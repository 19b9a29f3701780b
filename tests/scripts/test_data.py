"""`fedduet data`: a file that nobody described, then its profile, and its section of a report."""

from __future__ import annotations

import json

from fedduet.scripts.data import main
from fedduet.scripts.reporting import data_card

NOTES = "Ward,Note,Triage\n" + "".join(
    f"{ward},note {i} on <b>something</b> of {ward},{('calm', 'soon')[i % 2]}\n"
    for ward in ("east", "west")
    for i in range(12)
)


def test_the_first_command_says_the_second(tmp_path, capsys):
    (tmp_path / "notes.csv").write_text(NOTES)
    assert main(["task=files", f"task.path={tmp_path}/notes.csv"]) == 0
    said = capsys.readouterr().out
    assert "task.text_column=Note task.label_column=Triage" in said
    assert "'task.labels={calm: calm, soon: soon}' task.client_column=Ward" in said


def test_bad_rows_are_all_named_and_decide_the_exit_code(tmp_path, capsys):
    (tmp_path / "notes.csv").write_text(NOTES + "east,,calm\nwest,,soon\n")
    given = [f"task.path={tmp_path}/notes.csv", "task=files", "task.text_column=Note"]
    given += ["task.label_column=Triage", "task.labels={calm: calm, soon: soon}"]
    given += ["task.client_column=Ward", "slm.path=/none", "generator.path=/none"]
    given += ["generator.logical_batch=8"]
    assert main(given) == 1
    said = capsys.readouterr().out
    assert "line 26-27" in said and "task.on_bad_row=drop" in said
    assert "\n- 26 rows; words" in said
    assert main([*given, "task.on_bad_row=drop"]) == 0


def test_a_report_has_the_profile_and_quotes_no_text(tmp_path):
    found = {
        "rows": 1200, "words": [10, 20, 30], "blank_sites": 0, "other_sites": {"<x>": 3},
        "two_labels": 0, "two_sites": 0, "odd": {}, "problem": "",
        "sites": {"east": {"labels": {"calm": 7}, "train": 5, "validation": 1, "test": 1,
                           "repeated": 0, "in_test": 0, "bad": 2, "cut": 0}},
        "bad": {"column 'Note' is empty": {"notes.csv": [3, 4, 9]}},
        "lengths": {"slm.max_tokens": {"median": 90, "ninetieth": 140, "longest": 700, "limit": 96,
                                       "over": 45, "counted": 100}},
    }  # fmt: skip
    (tmp_path / data_card.FILE).write_text(json.dumps(found))
    page = data_card.section(tmp_path)
    assert "45 of 100 (45%)" in page and "slm.max_tokens=160 holds nine of ten" in page
    assert "3-4, 9" in page and "&lt;x&gt;" in page and "<x>" not in page
    assert "repeats" not in page  # a column of noughts
    assert data_card.section(tmp_path / "nowhere") == ""
