"""The commands for looking: choices, a run watched from another process, and predictions of a
site's SLM."""

import json
import threading
import time

import pytest
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.launch import launch
from fedduet.scripts.look import engines, model_folder, predict, strategies, tasks, watch
from transformers import pipeline

from fedduet import conf

OFF = (
    "strategy.baselines={local: true, dp_only: false, zero_shot: false, fedavg: false, pooled:"
    " false}"
)


def test_every_choice_is_listed_with_its_first_line(capsys):
    for command, names in (
        (strategies, ("fdkt", "crosslm")),
        (tasks, ("world", "fdu_mtl")),
        (engines, ("openai", "transformers")),
    ):
        assert command([]) == 0
        printed = capsys.readouterr().out
        assert all(name in printed for name in names) and "#" not in printed


def test_predictions_are_those_of_a_plain_pipeline(overrides, tmp_path, capsys):
    summary = launch(conf.compose([*overrides, OFF]))
    capsys.readouterr()
    text = "the coffee was great"
    assert predict([str(tmp_path / "run"), "--client", "coffee", text]) == 0
    printed = capsys.readouterr()
    label, probability, said = printed.out.strip().split("\t")
    accuracy = summary["accuracy_per_client"]["coffee"]["fdkt"]
    assert f"fdkt at coffee: right on {accuracy:.1%} of the site's test texts" in printed.err
    plain = pipeline(
        "text-classification", model=str(model_folder(tmp_path / "run", "coffee", None))
    )(text)[0]
    assert said == text and float(probability) == pytest.approx(plain["score"], abs=2e-3)
    assert label == plain["label"] and label in ("negative", "positive")
    with pytest.raises(ConfigError, match="--client: found 'tea'"):
        predict([str(tmp_path / "run"), "--client", "tea", text])
    with pytest.raises(ConfigError, match="--model: found 'best'; coffee keeps fdkt, local"):
        predict([str(tmp_path / "run"), "--client", "coffee", "--model", "best", text])


def test_a_run_is_watched_to_its_end(tmp_path, capsys):
    def write():
        with (tmp_path / "events.jsonl").open("a") as file:
            for entry in (
                {"event": "phase_start", "phase": "learn-local", "side": "clients"},
                {"event": "phase_end", "phase": "learn-local", "side": "clients", "seconds": 1.5},
                {"event": "end", "status": "completed"},
            ):
                line = json.dumps(entry) + "\n"
                file.write(line[:9])
                file.flush()
                time.sleep(0.05)
                file.write(line[9:])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert watch([str(tmp_path)]) == 0
    writer.join()
    assert "learn-local" in capsys.readouterr().out
    began = time.monotonic()
    with pytest.raises(ConfigError, match="none: no such folder"):
        watch([str(tmp_path / "none")])
    assert time.monotonic() - began < 5  # it does not wait, unless it is told to
    with pytest.raises(ConfigError, match=r"has no events\.jsonl"):
        watch([str(tmp_path / "none"), "--wait", "0.1"])
