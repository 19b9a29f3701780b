"""Trackers: the numbers of events.jsonl and nothing else, a failing one that stops no run, and what
is said of one that is not there."""

import json
from collections import Counter

import pytest
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.reporting.trackers import (
    Tracking,
    TrackingConfig,
    checked,
    figures,
    flat,
    main,
    sinks,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedduet import conf

OFF = (
    "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
    " false}"
)


def read(folder):
    loaded = EventAccumulator(str(folder))
    loaded.Reload()
    return {tag: loaded.Scalars(tag) for tag in loaded.Tags()["scalars"]}


def test_tensorboard_shows_a_run_and_its_resumption(overrides, tmp_path, capsys):
    summary = launch(conf.compose([*overrides, OFF]))
    run = tmp_path / "run"
    shown = read(run / "tensorboard")
    assert shown["accuracy/fdkt"][-1].value == pytest.approx(summary["accuracy"]["fdkt"])
    assert shown["accuracy/local/coffee"][-1].value == pytest.approx(
        summary["accuracy_per_client"]["coffee"]["local"]
    )
    assert shown["wire/up_bytes"][-1].value == pytest.approx(summary["wire"]["up_bytes"])
    assert shown["llm/new_tokens"][-1].value == summary["llm"]["new_tokens"]
    assert shown["epsilon/tents"][-1].value == pytest.approx(summary["epsilon"]["tents"])
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    last = max(point.step for points in shown.values() for point in points)
    assert last == len(events) + 1
    ended = next(
        entry
        for entry in events
        if entry["event"] == "phase_end" and entry["phase"] == "learn-fdkt"
    )
    assert shown["seconds/learn-fdkt"][0].wall_time == pytest.approx(ended["time"], abs=0.1)

    launch(conf.compose([*overrides, OFF]))  # resumed: steps go on behind those of the first start
    again = read(run / "tensorboard")
    steps = [point.step for point in again["accuracy/fdkt"]]
    assert len(steps) == 2 and steps[0] < last < steps[1]

    launch(conf.compose([*overrides, OFF, "tracking.to=none"]))  # may differ from start to start
    assert len(read(run / "tensorboard")["accuracy/fdkt"]) == 2

    (run / "tensorboard").rename(tmp_path / "first")
    capsys.readouterr()
    assert main([str(run), "--to", "tensorboard"]) == 0
    replayed = read(run / "tensorboard")
    assert replayed.keys() == shown.keys() and len(replayed["accuracy/fdkt"]) == 3
    with pytest.raises(ConfigError, match=r"no events\.jsonl"):
        main([str(tmp_path / "none"), "--to", "tensorboard"])


class Heard:
    """A sink that remembers."""

    def __init__(self, fails_at=None):
        self.rows, self.closed, self.fails_at = [], False, fails_at

    def log(self, figures, step, time):
        if len(self.rows) == self.fails_at:
            raise ConnectionError("nobody there")
        self.rows.append((step, dict(figures)))

    def close(self):
        self.closed = True


def test_a_tracker_that_fails_is_left_out_and_said_once():
    good, bad, said = Heard(), Heard(fails_at=1), []

    def absent():
        raise OSError("no server")

    tracking = Tracking(
        {"good": lambda: good, "bad": lambda: bad, "absent": absent}, said.append, step=10
    )
    for size in (5, 7, 9):
        tracking.event({"event": "sent", "time": 1.0, "bytes": size, "clients": ["a"]})
    tracking.event({"event": "warning", "time": 1.0, "message": "text is nothing for a tracker"})
    tracking.finish({"epsilon": {"a": 2.0, "b": float("inf")}}, 2.0)
    assert good.rows == [
        (11, {"wire/down_bytes": 5}),
        (12, {"wire/down_bytes": 12}),
        (13, {"wire/down_bytes": 21}),
        (15, {"epsilon/a": 2.0}),
    ]
    assert good.closed and bad.rows == [(11, {"wire/down_bytes": 5})]
    assert [line.split(":")[0] for line in said] == ["absent is left out", "bad is left out"]


def test_only_numbers_leave_the_events():
    secret = {
        "event": "failure",
        "time": 0.0,
        "phase": "p",
        "client": "c",
        "kind": "k",
        "reason": "some text",
    }
    assert figures(secret, Counter()) == {"failures": 1.0}
    assert figures(
        {"event": "round", "time": 0.0, "round": 1, "reward": 0.5, "oracle_agreement": None},
        Counter(),
    ) == {
        "round/round": 1.0,
        "round/reward": 0.5,
    }
    on_progress = dict(
        flat(
            {
                "run": {"folder": "here"},
                "federation": {"kind": "x"},
                "privacy": {"epsilon": 8},
                "seed": 1,
            }
        )
    )
    assert on_progress == {"privacy.epsilon": 8, "seed": 1}


def test_what_is_not_installed_or_unknown_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"tracking\.to: mlflow is not installed; pip install 'fedduet\[mlflow\]'"
    ):
        checked({"to": ["mlflow"]})
    assert (
        sinks(checked({"to": "auto"}), tmp_path) == {}
        and sinks(checked({"to": "none"}), tmp_path) == {}
    )
    with pytest.raises(
        ConfigError, match=r"tracking\.to: found 'tensorbord'; did you mean tensorboard"
    ):
        checked({"to": "tensorbord"})
    assert TrackingConfig(to=["wandb"]).to == ("wandb",)
