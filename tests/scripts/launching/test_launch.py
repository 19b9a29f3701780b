"""FDKT as a whole, in process, on a private CSV: what it leaves behind, what it charges, and how it
fails."""

import json
from pathlib import Path

import pytest
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.conf.check import ConfigError
from fedduet.scripts.launching.launch import launch
from fedduet.strategies.run.sites import TooFewSites
from fedduet.tasks.builtin.world import world_records

from fedduet import conf


def run(overrides, *more):
    """A run; an override in `more` replaces the one of `overrides` with the same key."""
    changed = {entry.partition("=")[0] for entry in more}
    return launch(
        conf.compose(
            [*(entry for entry in overrides if entry.partition("=")[0] not in changed), *more]
        )
    )


def rows(folder, name):
    return [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_contract_and_resumes_for_nothing(overrides, tmp_path):
    summary = run(overrides)
    assert (
        summary["status"] == "completed" and summary["clients"] == 2 and summary["failures"] == []
    )
    assert summary["accuracy"].keys() == {
        "fdkt",
        "local",
        "dp_only",
        "zero_shot",
        "fedavg",
        "pooled",
    }
    assert all(
        set(by_model) == set(summary["accuracy"])
        for by_model in summary["accuracy_per_client"].values()
    )
    assert set(summary["epsilon"]) == {"coffee", "tents"} and all(
        0 < value <= 8 for value in summary["epsilon"].values()
    )
    assert summary["wire"]["up_bytes"] > 1000 and summary["wire"]["down_bytes"] > 1000
    assert summary["llm"]["new_tokens"] > 0
    assert summary["seconds"]["total"] >= summary["seconds"]["clients"] > 0

    folder = tmp_path / "run"
    assert {row["client"] for row in rows(folder, "task_data")} == {"coffee", "tents"}
    ledger = Ledger(folder / "sites" / "coffee" / "ledger.jsonl", 8.0, 1e-5)
    (entry,) = ledger.entries()  # FedAvg's weights are in a ledger of their own
    assert entry.what == "dp-sgd" and (entry.event.steps, entry.event.sample_rate) == (4, 0.5)

    checkpoints = {file.name: file.read_bytes() for file in (folder / "checkpoint").iterdir()}
    again = run(overrides)
    assert (
        again["accuracy"]["fdkt"] == summary["accuracy"]["fdkt"]
        and again["epsilon"] == summary["epsilon"]
    )
    assert len(ledger.entries()) == 1
    assert {
        file.name: file.read_bytes() for file in (folder / "checkpoint").iterdir()
    } == checkpoints


def test_private_text_stays_in_the_sites_folders(overrides, tmp_path):
    run(
        overrides,
        "strategy.baselines={local: false, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}",
    )
    private = [
        record.text
        for domain in ("coffee", "tents")
        for seed, n in ((1, 60), (2, 30))
        for record in world_records(domain, n, seed)
    ]
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and "sites" not in file.parts:
            content = file.read_text(errors="ignore")
            assert not [text for text in private if text in content], file


def test_the_same_seed_gives_the_same_run(overrides, tmp_path):
    one = run(overrides, "privacy.seeded_noise=true", f"run.folder={tmp_path}/one")
    two = run(overrides, "privacy.seeded_noise=true", f"run.folder={tmp_path}/two")
    assert rows(tmp_path / "one", "demonstrations") != []
    assert one["accuracy_per_client"] == two["accuracy_per_client"]


def test_without_usable_answers_fdkt_equals_local_and_says_so(overrides, tmp_path):
    script = tmp_path / "nothing.yaml"
    script.write_text('answers: {"Text:": "x"}\n')  # an answer, but no text worth learning from
    summary = run(
        overrides,
        f"llm.script={script}",
        "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}",
    )
    assert summary["status"] == "completed"
    assert (
        summary["accuracy_per_client"]["coffee"]["fdkt"]
        == summary["accuracy_per_client"]["coffee"]["local"]
    )
    warnings = [
        entry["message"]
        for entry in rows(tmp_path / "run", "events")
        if entry["event"] == "warning"
    ]
    assert len([text for text in warnings if "no usable text" in text]) == 2


def test_an_llm_that_goes_on_with_lists_runs_whole(overrides, tiny_model):
    summary = run(
        [entry for entry in overrides if not entry.startswith("llm")],
        "llm=transformers",
        f"llm.path={tiny_model}",
        "llm.form=list",
        "strategy.augment.max_new_tokens=12",
        "strategy.augment.max_rounds=1",
        "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}",
    )
    assert summary["status"] == "completed" and summary["llm"]["errors"] == 0
    assert summary["llm"]["new_tokens"] > 0


def test_a_site_that_cannot_write_its_ledger_releases_nothing_and_the_others_go_on(
    overrides, tmp_path
):
    state = tmp_path / "state"
    # no user, not even root, can append to it
    (state / "coffee" / "ledger.jsonl").mkdir(parents=True)
    summary = run(
        overrides,
        f"federation.state_folder={state}",
        "strategy.baselines={dp_only: false, fedavg: false, pooled: false}",
    )
    assert summary["status"] == "completed" and set(summary["epsilon"]) == {"tents"}
    assert "coffee" not in {row["client"] for row in rows(tmp_path / "run", "demonstrations")}
    assert not (state / "coffee" / "releases").exists() and (state / "tents" / "releases").is_dir()
    (failure,) = summary["failures"]
    assert failure["client"] == "coffee" and "nothing was released" in failure["reason"]
    assert set(summary["accuracy_per_client"]) == {"coffee", "tents"}  # it still learns locally


def test_a_second_run_on_the_same_sites_is_refused_in_advance(overrides, tmp_path):
    keep = f"federation.state_folder={tmp_path}/state"
    off = (
        "strategy.baselines={local: false, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}"
    )
    run(overrides, keep, off)
    with pytest.raises(TooFewSites):
        run(overrides, keep, off, f"run.folder={tmp_path}/second")
    summary = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["epsilon"] == {}
    reason = summary["failures"][0]["reason"]  # neither what was spent on nor by which run
    assert "7.996 is spent already" in reason and "dp-sgd" not in reason


def test_rounds_share_the_budget(overrides, tmp_path):
    off = (
        "strategy.baselines={local: false, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}"
    )
    summary = run(overrides, off, "strategy.rounds=2")
    entries = Ledger(tmp_path / "run" / "sites" / "tents" / "ledger.jsonl", 8.0, 1e-5).entries()
    # one noise, planned for both rounds
    assert len(entries) == 2 and entries[0].event == entries[1].event
    assert 7 < summary["epsilon"]["tents"] <= 8
    assert {row["phase"] for row in rows(tmp_path / "run", "task_data")} == {
        "augment-0",
        "augment-1",
    }


def test_without_leave_no_unprotected_release(overrides, tmp_path):
    off = (
        "strategy.baselines={local: false, dp_only: false, zero_shot: false, fedavg: false, pooled:"
        " false}"
    )
    with pytest.raises(ConfigError, match="allow_unprotected"):
        run(overrides, off, "privacy.epsilon=inf")
    with pytest.raises(TooFewSites):
        run(
            overrides,
            off,
            "privacy.epsilon=inf",
            "privacy.policy.epsilon_total=8",
            "privacy.policy.epsilon_per_run=8",
        )
    assert (
        "without a guarantee"
        in json.loads((tmp_path / "run" / "summary.json").read_text())["failures"][0]["reason"]
    )
    summary = run(
        overrides,
        off,
        "privacy.epsilon=inf",
        "privacy.policy.allow_unprotected=true",
        f"run.folder={tmp_path}/open",
    )
    assert set(summary["epsilon"].values()) == {float("inf")}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("privacy.epsilon=0", "privacy.epsilon: found 0.*above 0"),
        ("privacy.epsilon=-1", "privacy.epsilon"),
        ("privacy.delta=0.5", "privacy.delta: found 0.5, but coffee has 32 records"),
        ("task.text_column=body", "body.*text"),
        ("task.path=/nowhere/train.csv", "/nowhere/train.csv"),
        ("task.clients=[coffee,tent]", "tent"),
        ("task.labels={0: negative, 7: positive}", "'?1'?"),
        ("generator.logical_batch=64", "32 training rows, fewer than the logical batch of 64"),
        ("slm.path=/nowhere", "slm.path.*nowhere"),
        ("+strategy.wieght=2", "wieght.*did you mean weight"),
        ("strategy.name=fdtk", "unknown strategy 'fdtk'; did you mean fdkt"),
        ("+strategy.baselines.fedprox=true", "unknown baseline fedprox"),
        ("+strategy.augment.per_lable=3", "strategy.augment.per_lable.*did you mean per_label"),
        ("federation.phase_timeout=0", "federation.phase_timeout"),
    ],
)
def test_what_cannot_work_is_said_before_any_model_is_loaded(
    overrides, override, says, monkeypatch
):
    def loads(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", loads)
    with pytest.raises(ConfigError, match=says):
        run(overrides, override)
