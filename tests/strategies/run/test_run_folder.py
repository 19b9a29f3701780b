"""The run folder: phases are done once, events are whole lines, another configuration is
refused."""

import json

import pytest
from fedduet.strategies.run.run_folder import RunFolder


def test_a_phase_is_computed_once_over_two_starts(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"a": [1, 2]}

    assert RunFolder(tmp_path, {"seed": 0}).once("augment-0", compute) == {"a": [1, 2]}
    again = RunFolder(tmp_path, {"seed": 0})
    assert again.once("augment-0", compute) == {"a": [1, 2]}
    assert len(calls) == 1
    assert [entry["phase"] for entry in again.events() if entry["event"] == "phase_reused"] == [
        "augment-0"
    ]


def test_a_phase_that_fails_is_done_again(tmp_path):
    run = RunFolder(tmp_path, {})
    with pytest.raises(RuntimeError):
        run.once("x", lambda: (_ for _ in ()).throw(RuntimeError("killed")))
    assert run.once("x", lambda: 7) == 7


def test_a_folder_of_another_run_is_refused_by_key(tmp_path):
    RunFolder(
        tmp_path, {"seed": 0, "privacy": {"epsilon": 8.0}, "federation": {"kind": "inprocess"}}
    )
    # where it runs may change
    RunFolder(
        tmp_path, {"seed": 0, "privacy": {"epsilon": 8.0}, "federation": {"kind": "simulation"}}
    )
    with pytest.raises(ValueError, match=r"privacy\.epsilon"):
        RunFolder(
            tmp_path, {"seed": 0, "privacy": {"epsilon": 4.0}, "federation": {"kind": "inprocess"}}
        )


def test_a_torn_last_event_is_passed_over(tmp_path):
    run = RunFolder(tmp_path, {})
    run.event("start")
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "half')
    assert [entry["event"] for entry in run.events()] == ["start"]


def test_listeners_hear_what_is_written_and_phases_are_timed(tmp_path):
    heard = []
    run = RunFolder(tmp_path, {}, [heard.append])
    with run.phase("learn-fdkt", "clients"):
        pass
    assert [entry["event"] for entry in heard] == ["phase_start", "phase_end"]
    assert (
        heard == list(run.events()) and heard[1]["side"] == "clients" and heard[1]["seconds"] >= 0
    )


def test_artefacts_are_replaced_whole(tmp_path):
    run = RunFolder(tmp_path, {})
    run.artefact("demonstrations", [{"text": "a\nb"}, {"text": "c"}])
    run.artefact("demonstrations", [{"text": "d"}])
    assert [
        json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()
    ] == [{"text": "d"}]
