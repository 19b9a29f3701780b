"""The vault on a real disk with real, tiny models: what is charged is what ran, is charged first,
and nothing else leaves."""

from __future__ import annotations

import csv
import json
import math
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fedduet.clients.vault import slm, synthesis
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.vault import Vault
from fedduet.lm.dp.accounting import Event, compose
from fedduet.tasks.data.load import load_client
from fedduet.wire.messages import (
    Evaluate,
    Evaluated,
    LabelledTexts,
    Learn,
    Learned,
    Refused,
    Synthesize,
    Synthesized,
)

DELTA = 1e-5  # min(1e-5, 1 / (10 n)) for the 32 records here
GENERATED = LabelledTexts(["a fine cup .", "it broke at once ."] * 4, [1, 0] * 4)


def ask(message_id="m", **changes) -> Synthesize:
    return Synthesize(
        **{
            "message_id": message_id,
            "run": "r",
            "round": 0,
            "rounds": 1,
            "per_label": 3,
            "epsilon": 8.0,
            **changes,
        }
    )


def ledger_of(vault, name="ledger.jsonl") -> Ledger:
    return Ledger(vault.config.folder / name, math.inf, DELTA, allow_unprotected=True)


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def released(vault) -> list[str]:
    return [name for name in files(vault.config.folder) if name.startswith("releases/")]


# --- One charge, before one release, for what ran -------------------------------------------------


def test_the_charge_is_on_the_disk_before_training_starts(site, seen):
    vault = site()
    at_start = []
    seen.before.append(
        lambda: at_start.extend((vault.config.folder / "ledger.jsonl").read_text().splitlines())
    )
    answer = vault.synthesize(ask())
    (line,) = at_start
    charged = json.loads(line)
    config, noise_multiplier = seen.generator[0][4:6]
    (report,) = seen.reports
    assert charged["id"] == "m" and charged["what"] == "dp-sgd" and charged["released"] == 3 * 2
    assert charged["event"] == {
        "kind": "poisson_gaussian",
        "noise_multiplier": noise_multiplier,
        "sample_rate": report.sample_rate,
        "steps": report.steps,
    }
    assert (report.steps, report.sample_rate, len(report.batch_sizes)) == (4, 0.5, 4)
    receipt = answer.receipt
    event = Event.poisson_gaussian(noise_multiplier, 0.5, 4)
    assert (receipt.mechanism, receipt.noise_multiplier, receipt.sample_rate, receipt.steps) == (
        "dp-sgd",
        noise_multiplier,
        0.5,
        4,
    )
    assert (receipt.clip, receipt.records, receipt.delta) == (config.clip, 32, DELTA)
    assert (
        receipt.epsilon
        == receipt.epsilon_total
        == ledger_of(vault).spent()
        == compose([event], DELTA)
    )
    assert 7.9 < receipt.epsilon <= 8
    assert receipt.released == len(answer.data)


def test_the_users_clip_is_the_one_that_trains_and_is_stated(site, seen):
    answer = site(generator={"clip": 0.25}).synthesize(ask())
    assert seen.generator[0][4].clip == answer.receipt.clip == 0.25


def test_the_same_id_gets_the_same_texts_for_one_charge(site, seen):
    vault = site()
    first = vault.synthesize(ask())
    assert isinstance(first, Synthesized)
    assert vault.synthesize(ask()) == first
    assert site().synthesize(ask()) == first  # a new process on the same folder
    # whatever else is asked under that id
    assert site().synthesize(ask(per_label=1, epsilon=1.0, seed=9)) == first
    assert len(seen.generator) == 1 and len(ledger_of(vault).entries()) == 1


def test_rounds_are_planned_together_and_add_up_to_the_asked_epsilon(site):
    vault = site()
    one, two = (vault.synthesize(ask(f"m{round}", round=round, rounds=2)) for round in range(2))
    assert one.receipt.noise_multiplier == two.receipt.noise_multiplier
    assert one.receipt.epsilon < 8 and 7.9 < two.receipt.epsilon_total <= 8
    # the round to come is spent with the first
    assert one.receipt.epsilon_total == two.receipt.epsilon_total == two.receipt.epsilon_fixed
    assert ledger_of(vault).plans() == [
        Event.poisson_gaussian(one.receipt.noise_multiplier, 0.5, 8)
    ]
    assert ledger_of(vault).heads() > {one.receipt.ledger_head, two.receipt.ledger_head}
    over = vault.synthesize(ask("m3", run="other"))
    assert isinstance(over, Refused) and over.kind == "budget" and "run r" not in over.reason


@pytest.mark.parametrize("where", ["train_generator", "sample_texts"])
def test_a_crash_after_the_charge_is_made_good_without_a_second(site, monkeypatch, where):
    vault = site()

    def crash(*_, **__):
        raise RuntimeError("out of memory at 'my private coffee'")

    with monkeypatch.context() as patch:
        patch.setattr(synthesis, where, crash)
        failed = vault.synthesize(ask())
    assert (
        isinstance(failed, Refused)
        and failed.kind == "error"
        # an exception may quote a record, and which one it is may depend on one
        and failed.reason == "synthesize failed; the site's failures.log says why"
    )
    assert "my private coffee" in (vault.config.folder / "failures.log").read_text()
    (charged,) = ledger_of(vault).entries()
    assert released(vault) == []
    answer = site().synthesize(ask())
    assert isinstance(answer, Synthesized) and ledger_of(vault).entries() == [charged]
    assert answer.receipt.noise_multiplier == charged.event.noise_multiplier
    assert answer.receipt.epsilon == compose([charged.event], DELTA)


def test_a_crashed_unprotected_release_needs_the_leave_again(site, monkeypatch):
    vault = site(policy={"allow_unprotected": True})
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "train_generator", lambda *_, **__: 1 / 0)
        assert isinstance(vault.synthesize(ask(epsilon=math.inf)), Refused)
    again = site().synthesize(ask(epsilon=8.0))  # the same id, now under a policy without leave
    assert isinstance(again, Refused) and "unprotected" in again.reason and released(vault) == []


def test_records_that_changed_after_the_charge_release_nothing(site, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "train_generator", lambda *_, **__: 1 / 0)
        site().synthesize(ask())
    vault = site(generator={"epochs": 4.0})  # eight steps now, four were paid for
    answer = vault.synthesize(ask())
    assert (
        isinstance(answer, Refused)
        and answer.kind == "ledger"
        and "8 steps" not in answer.reason
        and released(vault) == []
    )
    assert "training ran 8 steps" in (vault.config.folder / "failures.log").read_text()


def test_two_trainings_for_one_id_at_once_are_one_release(site, monkeypatch):
    """Each has noise of its own, so letting both answers out would be two releases for one
    charge."""
    both = threading.Barrier(2, timeout=30)
    train = synthesis.train_generator

    def together(*arguments, **named):
        both.wait()
        return train(*arguments, **named)

    monkeypatch.setattr(synthesis, "train_generator", together)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(site(generator=EASY).synthesize(ask())))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2 and answers[0] == answers[1] and len(answers[0].data) == 6
    assert len(ledger_of(site()).entries()) == 1 and len(released(site())) == 1


def test_noise_from_a_seed_is_not_called_dp_sgd(site):
    simulated = site("a", seeded_noise=True, simulated=True).synthesize(ask())
    assert simulated.receipt.mechanism == "dp-sgd with seeded noise"
    # whoever knows the seed takes the noise off: at a real site a release without a guarantee
    refused = site(seeded_noise=True).synthesize(ask())
    assert isinstance(refused, Refused) and "carries no privacy guarantee" in refused.reason
    answer = site("b", {"allow_unprotected": True}, seeded_noise=True).synthesize(ask())
    assert (answer.receipt.mechanism, answer.receipt.epsilon) == ("none", math.inf)
    assert answer.receipt.noise_multiplier == simulated.receipt.noise_multiplier > 0


# --- What goes in, and how many come out ----------------------------------------------------------

# so that even a random model writes enough
EASY = {"minimum_tokens": 1, "attempts": 60, "max_new_tokens": 24}


def test_the_number_for_each_label_says_nothing_of_the_private_shares(
    site, seen, private_csv, tmp_path
):
    rows = list(csv.DictReader((private_csv / "train.csv").open()))
    for row in rows:
        row["label"] = "1"
    for row in [row for row in rows if row["domain"] == "coffee"][:6]:
        row["label"] = "0"
    with (tmp_path / "skewed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for folder, path in (("even", private_csv / "train.csv"), ("skewed", tmp_path / "skewed.csv")):
        vault = site(folder, generator=EASY, task_changes={"path": str(path)})
        answer = vault.synthesize(ask(per_label=5))
        assert Counter(answer.data.labels) == {0: 5, 1: 5}
    shares = [
        Counter("negative" in control for control in arguments[2]) for arguments in seen.generator
    ]
    assert shares[1][True] < 8 < shares[0][True]  # the private shares did differ


def test_only_training_records_reach_the_generator(site, seen):
    vault = site()
    vault.synthesize(ask())
    split = load_client(vault.config.task, "coffee", 0)
    (arguments,) = seen.generator
    assert (
        sorted(arguments[3]) == sorted(record.text for record in split.train)
        and len(arguments[3]) == 32
    )
    held = {record.text for record in (*split.validation, *split.test)}
    assert len(held) > 30 and not held & set(arguments[3])
    wordings = ("negative", "positive")
    assert arguments[2] == [
        f"Texts about coffee\nLabel: {wordings[record.label]}\nText: " for record in split.train
    ]


def test_the_slm_trains_on_training_records_and_generated_ones_and_is_chosen_on_validation(
    site, seen
):
    vault = site()
    vault.learn(Learn("l", "r", "fdkt", GENERATED))
    split = load_client(vault.config.task, "coffee", 0)
    (_, _, private, generated, _), named = seen.classifier[0]
    assert list(private.texts) == [record.text for record in split.train] and generated == GENERATED
    assert list(named["validation"].texts) == [record.text for record in split.validation]
    assert not {record.text for record in split.test} & {
        *private.texts,
        *generated.texts,
        *named["validation"].texts,
    }
    vault.learn(Learn("l2", "r", "zero", GENERATED, private=False))
    assert len(seen.classifier[1][0][2].texts) == 0


def weights(vault, name) -> bytes:
    return (vault.config.folder / "models" / "r" / name / "model.safetensors").read_bytes()


def test_rounds_of_averaging_add_up_to_one_training_from_one_start(site):
    """Parts of a training take its steps in all, whatever they round to; a head that is to be
    averaged is the same at all sites, one that is not is the site's own."""
    longer = {"epochs": 7.0, "max_steps": 100, "batch_size": 16}
    vault = site(slm=site().config.slm.model_copy(update=longer))
    whole = vault.learn(Learn("a", "r", "local"))[0]
    parts = [vault.learn(Learn(f"p{k}", "r", "part", part=1 / 3, begun=k / 3))[0] for k in range(3)]
    assert sum(one.steps for one in parts) == whole.steps == 14
    assert sum(one.private_passes for one in parts) == pytest.approx(whole.private_passes) == 7
    with pytest.raises(ValueError, match=r"part: found 0.5 after 0.6; allowed"):
        Learn("x", "r", "m", part=0.5, begun=0.6)


def test_further_samples_of_a_generator_cost_nothing(site):
    vault = site(generator=EASY)
    answer = vault.synthesize(ask(per_label=2, extra=3))
    assert Counter(answer.data.labels) == {0: 5, 1: 5} and answer.receipt.released == 10
    plain = site("other", generator=EASY).synthesize(ask(per_label=2))
    assert answer.receipt.epsilon == plain.receipt.epsilon
    with pytest.raises(ValueError, match="extra: found -1"):
        ask(extra=-1)


def test_where_texts_have_their_domain_in_front_private_and_asked_ones_have_it_too(site, seen):
    vault = site()
    given = LabelledTexts(["tents: a fine peg ."] * 4, [1] * 4)
    vault.learn(Learn("d", "r", "named", given, domain_first=True))
    (_, _, private, _, _), named = seen.classifier[0]
    train = load_client(vault.config.task, "coffee", 0).train
    assert list(private.texts) == [f"coffee: {record.text}" for record in train]
    assert all(text.startswith("coffee: ") for text in named["validation"].texts)
    vault.learn(Learn("p", "r", "plain", given))
    models = vault._slm("r")
    asked = models.probabilities("named", ["a fine cup ."])
    shutil.copytree(models._folder / "named", models._folder / "bare")
    (models._folder / "bare" / slm.DOMAIN_FIRST).unlink()
    assert (asked == models.probabilities("bare", ["coffee: a fine cup ."])).all()
    assert (asked != models.probabilities("bare", ["a fine cup ."])).any()
    vault.learn(Learn("n", "r", "named", given))  # learnt again, without
    assert not (models._folder / "named" / slm.DOMAIN_FIRST).exists()


@pytest.mark.parametrize("share", [False, True])
def test_sites_start_from_heads_of_their_own_unless_these_are_averaged(site, share, monkeypatch):
    drawn = []
    load = slm.load_classifier
    monkeypatch.setattr(slm, "load_classifier", lambda *a: (drawn.append(a[2]), load(*a))[1])
    policy = {"share_weights": True, "allow_unprotected": True}
    for client in ("coffee", "tents"):
        site(client, policy, client=client).learn(Learn("a", "r", "m", share_weights=share))
    assert (drawn[0] == drawn[1]) == share


def test_learning_without_generated_texts_is_local_training(site):
    vault = site(simulated=True)
    learned, arrays = vault.learn(Learn("a", "r", "local"))
    assert isinstance(learned, Learned) and arrays is None and learned.receipt is None
    assert (learned.private_units, learned.generated_rows, learned.checkpoint) == (32, 0, "last")
    assert learned.private_passes == learned.steps * vault.config.slm.batch_size / 32
    # a finer clock would tell of the lengths of private texts
    assert learned.seconds == round(learned.seconds, 1)
    vault.learn(Learn("b", "r", "fdkt", LabelledTexts()))
    vault.learn(Learn("c", "r", "taught", GENERATED))
    assert weights(vault, "fdkt") == weights(vault, "local") != weights(vault, "taught")
    counts = vault.evaluate(Evaluate("e", "r", "local"))
    assert (
        isinstance(counts, Evaluated)
        and counts.total == {"coffee": 30}
        and 0 <= counts.correct["coffee"] <= 30
    )
    assert sum(map(sum, counts.detail.confusion)) == 30
    # none of this is a DP release
    assert files(vault.config.folder) and "ledger.jsonl" not in files(vault.config.folder)


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "request_", "says"),
    [
        ({"methods": ("learn", "evaluate")}, ask(), "method 'synthesize' is not allowed"),
        ({"minimum_records": 33}, ask(), "32 records; allowed: at least 33"),
        ({"maximum_texts_per_release": 5}, ask(), "asked for 6 texts"),
        ({"epsilon_per_run": 2.0}, ask(), "found 8 for the run; allowed: at most 2"),
        ({}, ask(epsilon=8.01), "allowed: at most 8"),
        ({}, ask(epsilon=math.inf), "without a guarantee"),
        ({}, ask(epsilon=math.nan), "epsilon: found nan"),
        ({}, ask(delta=math.nan), "delta: found nan"),
        ({"delta": 0.1}, ask(), "not below 1 / n"),
        ({}, ask(round=0, rounds=10**9), "1 to 1000 rounds"),
        ({"methods": ("synthesize",)}, Learn("m", "r", "local"), "method 'learn' is not allowed"),
        ({"minimum_records": 33}, Learn("m", "r", "local"), "32 records"),
        ({}, Learn("m", "r", "x", LabelledTexts(["a"], [2])), "label 2; allowed: 0 to 1"),
        ({}, Learn("m", "r", "x", start="local"), "no model 'local'"),
        ({}, Learn("m", "r", "fedavg", share_weights=True), "weights do not leave this site"),
        (
            {"share_weights": True},
            Learn("m", "r", "fedavg", share_weights=True),
            "no privacy guarantee",
        ),
        ({"share_metrics": "never"}, Evaluate("m", "r", "local"), "share_metrics is never"),
        (
            {"methods": ("synthesize", "learn")},
            Evaluate("m", "r", "local"),
            "method 'evaluate' is not allowed",
        ),
        ({}, Evaluate("m", "r", "local"), "no model 'local'"),
    ],
)
def test_what_the_policy_does_not_grant_is_refused_and_leaves_no_trace(
    site, seen, policy, request_, says
):
    vault = site(policy=policy)
    answer = getattr(
        vault, {Synthesize: "synthesize", Learn: "learn", Evaluate: "evaluate"}[type(request_)]
    )(request_)
    if isinstance(request_, Learn):
        answer, arrays = answer
        assert arrays is None
    assert isinstance(answer, Refused) and says in answer.reason and answer.kind == "policy"
    assert seen.generator == [] and seen.classifier == []
    assert not vault.config.folder.exists() or files(vault.config.folder) == []


def test_a_site_without_a_generator_says_so_and_is_charged_nothing(site):
    vault = Vault(replace(site().config, generator=None))
    answer = vault.synthesize(ask())
    assert isinstance(answer, Refused) and answer.kind == "policy"
    assert "no DP generator" in answer.reason and ledger_of(vault).entries() == []


def test_a_server_gets_so_many_measurements_and_no_more(site):
    vault = site(policy={"maximum_measurements": 2})
    vault.learn(Learn("l", "r", "one"))
    vault.learn(Learn("m", "r", "two", GENERATED))
    first = vault.evaluate(Evaluate("a", "r", "one"))
    assert first.detail is None  # of a real site, whatever it grants
    assert vault.evaluate(Evaluate("a", "r", "one")) == first  # the same again is no new one
    assert vault.evaluate(Evaluate("a", "r", "two")).model == "two"
    third = site(policy={"maximum_measurements": 2}).evaluate(Evaluate("b", "r", "one"))
    assert isinstance(third, Refused) and third.reason.startswith(
        "2 measurements left this site; allowed: at most 2"
    )


def test_data_that_cannot_be_read_is_not_quoted_to_the_server(site, private_csv, tmp_path):
    (tmp_path / "odd.csv").write_text("text,label,domain\nmy private text,secret label,coffee\n")
    for call, request in (("synthesize", ask()), ("evaluate", Evaluate("e", "r", "x"))):
        vault = site(task_changes={"path": str(tmp_path / "odd.csv"), "test_path": None})
        if call == "evaluate":
            (vault.config.folder / "models" / "r" / "x").mkdir(parents=True)
        answer = getattr(vault, call)(request)
        assert (
            isinstance(answer, Refused) and answer.kind == "data" and "secret" not in answer.reason
        )
    assert "secret label" in (vault.config.folder / "failures.log").read_text()


# --- Weights --------------------------------------------------------------------------------------


def test_in_a_simulation_weights_go_to_the_ledger_of_what_would_have_left(site):
    vault = site(counterfactual_baselines=True)
    learned, arrays = vault.learn(Learn("w", "r", "fedavg", share_weights=True))
    assert isinstance(learned, Learned) and arrays and learned.receipt.released == len(arrays)
    assert (learned.receipt.mechanism, learned.receipt.epsilon, learned.receipt.epsilon_total) == (
        "none",
        math.inf,
        math.inf,
    )
    (entry,) = ledger_of(vault, "counterfactual.jsonl").entries()
    assert (entry.what, entry.event.kind) == ("weights", "none")
    assert not (vault.config.folder / "ledger.jsonl").exists()
    # nothing left, so the site's own budget is whole
    assert vault.synthesize(ask()).receipt.epsilon_total <= 8


def test_a_real_site_that_lets_weights_go_says_infinite_in_its_own_ledger(site):
    vault = site(policy={"share_weights": True, "allow_unprotected": True})
    learned, arrays = vault.learn(Learn("w", "r", "fedavg", share_weights=True))
    assert (
        arrays
        and learned.receipt.epsilon_total == math.inf
        and ledger_of(vault).spent() == math.inf
    )
    assert not (vault.config.folder / "counterfactual.jsonl").exists()
    strict = site().synthesize(ask())  # without the leave there is no total to keep any more
    assert (
        isinstance(strict, Refused) and strict.kind == "budget" and "unprotected" in strict.reason
    )


def test_weights_that_cannot_be_charged_do_not_leave(site):
    vault = site(policy={"share_weights": True, "allow_unprotected": True})
    (vault.config.folder / "ledger.jsonl").mkdir(parents=True)
    answer, arrays = vault.learn(Learn("w", "r", "fedavg", share_weights=True))
    assert isinstance(answer, Refused) and answer.kind == "ledger" and arrays is None


# --- A disk that does not take it -----------------------------------------------------------------


def test_a_ledger_that_cannot_be_written_releases_nothing(site, seen, tmp_path):
    vault = site()
    # no user, not even root, can append to it
    (vault.config.folder / "ledger.jsonl").mkdir(parents=True)
    answer = vault.synthesize(ask())
    assert (
        isinstance(answer, Refused)
        and answer.kind == "ledger"
        and "nothing was released" in answer.reason
    )
    (tmp_path / "file").write_text("")
    below = site("file/site").synthesize(ask())  # a folder that cannot be made
    assert isinstance(below, Refused) and below.kind == "ledger"
    assert seen.generator == [] and released(vault) == []


def test_a_release_that_cannot_be_kept_does_not_leave(site):
    vault = site()
    vault.config.folder.mkdir()
    (vault.config.folder / "releases").write_text("")
    answer = vault.synthesize(ask())
    assert isinstance(answer, Refused) and answer.kind == "error"
    (vault.config.folder / "releases").unlink()
    assert isinstance(vault.synthesize(ask()), Synthesized) and len(ledger_of(vault).entries()) == 1


def test_a_twin_that_is_charged_while_this_message_plans_pays_for_both(site, monkeypatch):
    """The plan is made after the other's charge, and so would be of much more noise: what was paid
    for is what runs."""
    vault, twin, plan = site(), site(), Ledger.plan

    def late(self, *arguments, **named):
        monkeypatch.setattr(Ledger, "plan", plan)
        answers.append(twin.synthesize(ask()))
        return plan(self, *arguments, **named)

    answers = []
    monkeypatch.setattr(Ledger, "plan", late)
    answers.append(vault.synthesize(ask()))
    assert answers[0] == answers[1] and isinstance(answers[0], Synthesized)
    assert len(ledger_of(vault).entries()) == 1


def test_the_runs_cap_is_charged_with_too_not_only_planned_with(site, monkeypatch):
    """A plan made while another message of the run was charged has too little noise: the charge
    itself refuses it."""
    monkeypatch.setattr(Ledger, "plan", lambda *_, **__: 0.6)
    answer = site(policy={"epsilon_total": 500.0}).synthesize(ask())
    assert isinstance(answer, Refused) and "budget of run r: 8.0" in answer.reason


def test_a_stricter_delta_of_the_request_is_planned_for_and_stated(site):
    plain, strict = site("a").synthesize(ask()), site("b").synthesize(ask(delta=1e-9))
    event = Event.poisson_gaussian(strict.receipt.noise_multiplier, 0.5, 4)
    assert strict.receipt.delta == 1e-9 and 7.9 < compose([event], 1e-9) <= 8
    assert strict.receipt.noise_multiplier > 1.1 * plain.receipt.noise_multiplier
