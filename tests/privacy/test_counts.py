"""Test counts: what a server that chooses what a model learns can read from them, and what they
cost."""

import csv
import math
import time

import numpy as np
import pytest
from fedduet.clients.vault import counting
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.counting import check_noise, noisy_count, right_by_unit
from fedduet.clients.vault.trainings import told_seconds
from fedduet.lm.dp.accounting import BudgetError, Event, compose
from fedduet.lm.models.load import load_classifier, load_tokenizer
from fedduet.lm.models.save import trainable_arrays
from fedduet.lm.randomness import SeededNoise
from fedduet.lm.training.classify import prepare_classifier
from fedduet.wire.messages import Evaluate, Evaluated, LabelledTexts, Learn, Learned, Refused

GENERATED = LabelledTexts(["a fine cup .", "it broke at once ."] * 4, [1, 0] * 4)


@pytest.fixture
def with_record(private_csv, tmp_path):
    """The private CSV, with one record more that holds a word nobody else writes, or without it."""

    def changes(member):
        rows = list(csv.DictReader((private_csv / "train.csv").open()))
        rows += [{"text": "zyx zyx zyx zyx", "label": "1", "domain": "coffee"}] * member
        path = tmp_path / f"member-{member}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return {"path": str(path), "rows_per_client": None}

    return changes


def planted(vault):
    """The weights that a server would plant: the public start, whose embedding of the rare word it
    makes large, so that a training on that word alone moves it."""
    slm = vault.config.slm
    tokenizer = load_tokenizer(str(slm.path))
    model = prepare_classifier(load_classifier(str(slm.path), 2, 0, tokenizer), slm)
    arrays = trainable_arrays(model)
    (embedding,) = (name for name in arrays if "embed_tokens" in name)
    rare = tokenizer("zyx", add_special_tokens=False)["input_ids"]
    arrays[embedding] = arrays[embedding].copy()
    arrays[embedding][rare] *= 50
    return arrays


def test_planted_weights_do_not_enter_and_counts_do_not_leave(site, with_record):
    """A server plants a neuron that one rare word wakes, lets the site train, trains once more on
    its own rows, and reads one count: with and without the member it gets the same refusals."""
    heard = []
    for member in (True, False):
        changes = with_record(member)
        vault = site(f"closed-{member}", {"share_metrics": "never"}, task_changes=changes)
        refused, _ = vault.learn(Learn("p", "r", "planted"), planted(vault))
        assert isinstance(refused, Refused) and "do not enter this site" in refused.reason
        assert not vault.config.folder.exists()
        assert isinstance(vault.learn(Learn("a", "r", "own"))[0], Learned)
        again = Learn("b", "r", "own", GENERATED, private=False, start="own")
        assert isinstance(vault.learn(again)[0], Learned)
        counts = [
            vault.evaluate(Evaluate(f"e-{epsilon}", "r", "own", epsilon=epsilon))
            for epsilon in (None, 1.0)
        ]
        assert all("share_metrics is never" in no.reason for no in counts)
        heard.append((refused, counts))
    assert heard[0] == heard[1]


def test_what_leaves_by_permission_alone_is_none_in_ledger_and_receipts(site):
    open_ = {"share_metrics": "any", "share_weights": True, "allow_unprotected": True}
    vault = site(policy=open_)
    assert isinstance(vault.learn(Learn("p", "r", "planted"), planted(vault))[0], Learned)
    counted = vault.evaluate(Evaluate("e", "r", "planted"))
    assert vault.evaluate(Evaluate("e", "r", "planted")) == counted
    entries = Ledger(vault.config.folder / "ledger.jsonl", math.inf, 1e-5, True).entries()
    assert [(entry.what, entry.event.kind) for entry in entries] == [("counts", "none")]
    receipt = counted.receipt
    assert (receipt.mechanism, receipt.epsilon, receipt.epsilon_total) == (
        "none",
        math.inf,
        math.inf,
    )
    # without the leave there is no total to keep any more
    strict = site(policy={"share_metrics": "private"})
    strict.learn(Learn("c", "r", "public", GENERATED, private=False))
    refused = strict.evaluate(Evaluate("f", "r", "public", epsilon=8.0))
    assert isinstance(refused, Refused) and refused.kind == "budget"


def test_a_noisy_count_of_what_saw_private_records_is_refused_whatever_it_was_called(site):
    vault = site(policy={"share_metrics": "private"})
    vault.learn(Learn("a", "r", "private", GENERATED))
    vault.learn(Learn("b", "r", "heir", GENERATED, private=False, start="private"))
    vault.learn(Learn("c", "r", "public", GENERATED, private=False))
    for model in ("private", "heir"):
        refused = vault.evaluate(Evaluate(f"e-{model}", "r", model, epsilon=8.0))
        assert isinstance(refused, Refused) and "saw private records" in refused.reason
    assert isinstance(vault.evaluate(Evaluate("e", "r", "public", epsilon=8.0)), Evaluated)
    vault.learn(Learn("d", "r", "public", GENERATED))  # under the same name, with private records
    refused = vault.evaluate(Evaluate("f", "r", "public", epsilon=8.0))
    assert isinstance(refused, Refused) and "saw private records" in refused.reason


def test_a_public_model_is_no_function_of_any_private_row(site, seen):
    vault = site(policy={"share_metrics": "private"})
    vault.learn(Learn("c", "r", "public", GENERATED, private=False))
    (_, _, private, generated, _), named = seen.classifier[0]
    assert len(private.texts) == 0 and generated == GENERATED and named["validation"] is None


def test_a_noisy_count_is_planned_charged_once_and_adds_the_charged_noise(site, monkeypatch):
    vault = site(policy={"share_metrics": "private"})
    vault.learn(Learn("c", "r", "public", GENERATED, private=False))
    drawn = []
    real = counting.noisy_count
    monkeypatch.setattr(
        "fedduet.clients.vault.vault.noisy_count",
        lambda *given: drawn.append(given) or real(*given),
    )
    request = Evaluate("e", "r", "public", epsilon=8.0, rounds=2)
    first = vault.evaluate(request)
    (entry,) = Ledger(vault.config.folder / "ledger.jsonl", 8.0, 1e-5).entries()
    (count, units, sigma, _) = drawn[0]
    assert (entry.what, entry.event, units) == ("gaussian-count", Event.gaussian(sigma), 30)
    # planned for both rounds
    assert 7.9 < compose([entry.event] * 2, 1e-5) <= 8.0
    assert first.receipt.epsilon == compose([entry.event], 1e-5)
    assert first.receipt.mechanism == "gaussian-count" and first.total == {"coffee": 30}
    assert 0 <= first.correct["coffee"] <= 30 and count == int(count)
    assert vault.evaluate(request) == first and len(drawn) == 1
    for file in (vault.config.folder / "measurements").iterdir():
        file.unlink()
    lost = vault.evaluate(request)  # a second draw for one charge would be two counts
    assert isinstance(lost, Refused) and lost.kind == "ledger" and len(drawn) == 1


def test_noise_that_would_hide_the_count_is_not_bought(site):
    vault = site(policy={"share_metrics": "private"})
    vault.learn(Learn("c", "r", "public", GENERATED, private=False))
    refused = vault.evaluate(Evaluate("e", "r", "public", epsilon=0.2))
    assert isinstance(refused, Refused) and refused.kind == "budget"
    assert "says nothing" in refused.reason and not (vault.config.folder / "ledger.jsonl").exists()
    check_noise(7.5, 30)
    with pytest.raises(BudgetError):
        check_noise(7.6, 30)


def test_each_unit_moves_the_sum_by_at_most_one():
    draw = np.random.default_rng(0)
    for _ in range(50):
        owners = draw.integers(0, 6, 40).tolist()
        right = draw.random(40) < 0.5
        whole = right_by_unit(right, owners)
        for unit in set(owners):
            rest = [i for i, owner in enumerate(owners) if owner != unit]
            without = right_by_unit(right[rest], [owners[i] for i in rest])
            assert -1e-9 <= whole - without <= 1 + 1e-9
    assert right_by_unit(np.array([True, False, True]), [0, 0, 1]) == 1.5
    assert right_by_unit(np.array([True, False, True]), [0, 1, 2]) == 2.0


def test_the_noise_of_a_count_has_the_stated_deviation():
    source = SeededNoise(0, "counts")
    found = np.array([noisy_count(500.0, 1000, 20.0, source) for _ in range(4000)])
    assert abs(found.mean() - 500) < 1.5 and abs(found.std() - 20) < 0.8
    edges = [noisy_count(0.0, 10, 20.0, source) for _ in range(50)]
    assert min(edges) == 0 and max(edges) == 10


def test_a_simulation_counts_for_free(site):
    vault = site(simulated=True)
    vault.learn(Learn("l", "r", "local"))
    counted = vault.evaluate(Evaluate("e", "r", "local"))
    assert isinstance(counted, Evaluated) and counted.receipt is None
    assert not (vault.config.folder / "ledger.jsonl").exists()


def test_a_real_site_tells_no_time_and_draws_its_own_batches(site, seen):
    """The server's seed is of what is public alone; the same request of another id has other
    batches, at another site too."""
    seeds = []
    for folder, message_id in (("one", "a"), ("one", "b"), ("two", "a"), ("one", "a")):
        vault = site(folder)
        learned, _ = vault.learn(Learn(message_id, "r", "local", seed=7))
        assert isinstance(learned, Learned) and learned.seconds == 0.0
        seeds.append(seen.classifier[-1][1]["seed"])
        secret = vault.config.folder / "batches.secret"
        assert secret.stat().st_mode & 0o777 == 0o600 and len(secret.read_bytes()) == 32
    assert len(set(seeds)) == 3 and seeds[0] == seeds[3]
    simulated = site("three", simulated=True)
    assert isinstance(simulated.learn(Learn("a", "r", "local", seed=7))[0], Learned)
    assert not (simulated.config.folder / "batches.secret").exists()
    began = time.monotonic() - 5
    assert told_seconds(simulated.config, began) >= 5 and told_seconds(vault.config, began) == 0


def test_trainings_end_where_the_policy_says(site):
    vault = site(policy={"maximum_trainings": 2, "maximum_models": 1})
    assert isinstance(vault.learn(Learn("a", "r", "one"))[0], Learned)
    other = vault.learn(Learn("b", "r", "two"))[0]
    assert isinstance(other, Refused) and "maximum_models" in other.reason
    assert isinstance(vault.learn(Learn("c", "r", "one"))[0], Learned)  # the same again
    third = site(policy={"maximum_trainings": 2}).learn(Learn("d", "r", "one"))[0]
    assert isinstance(third, Refused) and "maximum_trainings" in third.reason
