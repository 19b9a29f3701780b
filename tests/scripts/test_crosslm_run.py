"""CrossLM as a whole, in process, on a private CSV with a tiny random LLM: what it leaves behind,
how it is charged, and how it resumes."""

import json
import math
from pathlib import Path

import pytest
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.scripts.launching.launch import launch
from fedduet.server import tuner
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedduet import conf

DROPPED = ("llm", "llm.script", "strategy.demonstrations_per_label", "strategy.augment.per_label")
ALL_OFF = (
    "strategy.baselines={zero_shot: false, filtered: false, llm_unfiltered: false, llm_pooled:"
    " false, fedavg: false, pooled: false}"
)


@pytest.fixture
def crosslm(overrides, tiny_model, private_csv):
    """Overrides of a small CrossLM run with a tunable LLM; `run(*more)` starts it."""
    base = [entry for entry in overrides if entry.partition("=")[0] not in DROPPED]
    neutral = private_csv.parent / "neutral.txt"
    weather = (
        "The weather in town was {} on day {n} and people walked along the river until the lamps"
        " were lit at {n} past six."
    )
    neutral.write_text(
        "\n\n".join(weather.format("mild" if n % 3 else "cold", n=n) for n in range(60))
    )
    base += [
        "strategy=crosslm",
        f"llm.path={tiny_model}",
        "strategy.rounds=2",
        "strategy.per_label=4",
        "strategy.write.max_new_tokens=16",
        "strategy.write.min_tokens=1",
        "strategy.write.oversample=6",
        "strategy.llm_test_rows=8",
        f"strategy.general.texts={neutral}",
        "strategy.general.documents=16",
        "strategy.general.worst_perplexity=10",
        "strategy.general.worst_accuracy=1",
        "strategy.policy.kl_limit=100",
        "strategy.examples.kl_limit=100",
    ]

    def run(*more):
        changed = {entry.partition("=")[0] for entry in more}
        return launch(
            conf.compose(
                [*(entry for entry in base if entry.partition("=")[0] not in changed), *more]
            )
        )

    return run


def rows(folder, name):
    return [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text().splitlines()]


def test_the_llm_writes_as_it_was_tuned_and_baselines_as_it_came(crosslm, monkeypatch):
    used, real = [], tuner.write

    def write(task, llm, *more):
        used.append(llm.adapter)
        return real(task, llm, *more)

    monkeypatch.setattr(tuner, "write", write)
    off = ALL_OFF.replace("zero_shot: false", "zero_shot: true")
    summary = crosslm(off, "strategy.policy.epochs=1", "strategy.examples.epochs=1")
    assert summary["status"] == "completed"
    # two sites each: of round 0, of round 1, and the texts of the baseline
    assert used == [None, None, "generate", "generate", None, None]


def test_a_run_leaves_the_contract_and_resumes_for_nothing(crosslm, tmp_path, tiny_model):
    summary = crosslm()
    assert summary["status"] == "completed" and summary["failures"] == []
    assert set(summary["accuracy"]) == {
        "local",
        "crosslm-round-0",
        "crosslm",
        "zero_shot",
        "filtered",
        "fedavg",
        "pooled",
    }
    assert set(summary["llm_accuracy"]) == {"before", "after", "unfiltered", "pooled"}
    assert (
        summary["llm_general"]["before"]["perplexity"] > 1
        and summary["llm_general"]["after"]["perplexity"] > 1
    )
    assert [entry["round"] for entry in summary["curve"]] == [0, 1]
    assert summary["feedback"] == "none" and all(
        math.isinf(value) for value in summary["epsilon"].values()
    )

    folder = tmp_path / "run"
    feedback = rows(folder, "feedback")
    assert {row["round"] for row in feedback} == {0, 1} and {row["client"] for row in feedback} == {
        "coffee",
        "tents",
    }
    for row in feedback:  # the reward is the mean of the sites' scores
        assert set(row["scores"]) == {"coffee", "tents"} and row["reward"] == pytest.approx(
            sum(row["scores"].values()) / 2, abs=1e-5
        )
    for name in ("tune-generator-1", "tune-task-1"):  # plain peft
        assert PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model), folder / "adapters" / name
        )

    checkpoints = {file.name: file.read_bytes() for file in (folder / "checkpoint").iterdir()}
    again = crosslm()
    assert (
        again["accuracy"]["crosslm"] == summary["accuracy"]["crosslm"]
        and again["curve"] == summary["curve"]
    )
    assert {
        file.name: file.read_bytes() for file in (folder / "checkpoint").iterdir()
    } == checkpoints


def test_a_run_that_was_cut_off_goes_on_with_its_adapters(crosslm, tmp_path):
    whole = crosslm(ALL_OFF, f"run.folder={tmp_path}/whole")
    cut = tmp_path / "cut"
    crosslm(ALL_OFF, f"run.folder={cut}")
    for name in (
        "write-1",
        "write-1-prompts",
        "score-1",
        "tune-generator-1",
        "tune-task-1",
        "learn-crosslm",
    ):
        (cut / "checkpoint" / f"{name}.json").unlink()
    resumed = crosslm(ALL_OFF, f"run.folder={cut}")
    assert [row["text"] for row in rows(cut, "feedback")] == [
        row["text"] for row in rows(tmp_path / "whole", "feedback")
    ]
    assert resumed["curve"] == whole["curve"]


def test_votes_cost_what_the_ledger_says(crosslm, tmp_path):
    summary = crosslm("privacy.feedback=votes", ALL_OFF)
    assert all(0 < value <= 8 for value in summary["epsilon"].values())
    entries = Ledger(tmp_path / "run" / "sites" / "coffee" / "ledger.jsonl", 8.0, 1e-5).entries()
    assert [entry.event.kind for entry in entries] == ["gaussian", "gaussian"]


def test_a_policy_without_unprotected_scores_refuses_them(crosslm):
    from fedduet.strategies.run.sites import TooFewSites

    with pytest.raises(TooFewSites, match="score-0"):
        crosslm("privacy.policy.share_scores=private", ALL_OFF)


def test_an_llm_that_cannot_be_tuned_is_steered_by_examples(overrides, tmp_path):
    base = [entry for entry in overrides if entry.partition("=")[0] not in DROPPED[2:]]
    more = [
        "strategy=crosslm",
        "strategy.rounds=2",
        "strategy.per_label=4",
        "strategy.general.texts=null",
        ALL_OFF,
    ]
    summary = launch(conf.compose([*base, *more]))
    assert summary["status"] == "completed" and not (tmp_path / "run" / "adapters").exists()
    assert any(
        "its weights do not change" in entry.get("message", "")
        for entry in rows(tmp_path / "run", "events")
    )
    prompts = json.loads((tmp_path / "run" / "checkpoint" / "write-1-prompts.json").read_text())[
        "coffee"
    ]
    best = {
        row["text"]
        for row in rows(tmp_path / "run", "feedback")
        if row["round"] == 0 and row["accepted"] and row["client"] == "coffee"
    }
    assert prompts and all(any(text in row["prompt"] for text in best) for row in prompts)


def test_fdkt_then_crosslm_starts_from_the_first_ones_models_and_demonstrations(
    overrides, crosslm, tmp_path
):
    base = [
        entry
        for entry in overrides
        if entry.partition("=")[0]
        not in (
            "strategy.demonstrations_per_label",
            "strategy.augment.per_label",
            "strategy.fedavg_rounds",
        )
    ]
    quiet = "{local: true, dp_only: false, zero_shot: false, fedavg: false, pooled: false}"
    more = [
        "strategy=fdkt_crosslm",
        "strategy.fdkt.demonstrations_per_label=6",
        "strategy.fdkt.augment.per_label=8",
        f"strategy.fdkt.baselines={quiet}",
        "strategy.crosslm.rounds=1",
        "strategy.crosslm.per_label=4",
        "strategy.crosslm.general.texts=null",
        ALL_OFF.replace("strategy.", "strategy.crosslm."),
        "privacy.feedback=votes",
    ]
    summary = launch(conf.compose([*base, *more]))
    assert {"local", "fdkt", "crosslm"} == set(summary["accuracy"]) and summary[
        "strategy"
    ] == "fdkt_crosslm"
    assert all(value <= 8 for value in summary["epsilon"].values())
    kinds = [
        entry.event.kind
        for entry in Ledger(
            tmp_path / "run" / "sites" / "coffee" / "ledger.jsonl", 8.0, 1e-5
        ).entries()
    ]
    assert kinds == ["poisson_gaussian", "gaussian"]
