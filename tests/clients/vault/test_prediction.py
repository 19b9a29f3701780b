"""Private prediction at a site: what is charged is what ran and is charged first, the method is
chosen by public numbers, and a unit is in one context."""

from __future__ import annotations

import json
import math

import pytest
from fedduet.clients.vault import prediction
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.config import GeneratorConfig
from fedduet.conf.check import ConfigError, check
from fedduet.lm.dp import predicted_texts, zcdp
from fedduet.lm.dp.accounting import Event, compose
from fedduet.lm.dp.private_prediction import ClippedDifferences, cost
from fedduet.wire.messages import Refused, Synthesize, Synthesized

DELTA = 1e-5
SMALL = {"tokens": 6, "examples": 1, "prompt_tokens": 32, "top_k": 20}
CHOSEN = {"method": "private_prediction", "minimum_tokens": 1}


@pytest.fixture
def opened(site):
    """opened(method=, prediction={...}, **site's): a site that predicts, its own policy open to
    short texts."""

    def make(prediction=None, generator=None, **more):
        config = {"prediction": check_prediction(SMALL | (prediction or {}))}
        return site(generator=CHOSEN | config | (generator or {}), **more)

    return make


def check_prediction(values):
    from fedduet.clients.vault.config import PredictionConfig

    return check(PredictionConfig, values, "generator.prediction")


def ask(message_id="m", **changes) -> Synthesize:
    asked = {"run": "r", "round": 0, "rounds": 1, "per_label": 3, "epsilon": 8.0}
    return Synthesize(message_id=message_id, **(asked | changes))


def ledger_of(vault) -> Ledger:
    return Ledger(vault.config.folder / "ledger.jsonl", math.inf, DELTA, allow_unprotected=True)


@pytest.fixture
def calls(monkeypatch):
    """What `write_texts` was called with for private texts, and the ledger's lines at that time."""
    seen, real = [], predicted_texts.write_texts

    def write(run, batches, rule, tokens, *rest):
        if any(batch.contexts for batch in batches):
            seen.append((batches, rule, tokens))
        return real(run, batches, rule, tokens, *rest)

    monkeypatch.setattr(predicted_texts, "write_texts", write)
    return seen


def test_the_charge_is_on_the_disk_first_and_pays_for_what_ran(opened, calls, monkeypatch):
    vault, at_start = opened(), []
    real = prediction.predict_demonstrations

    def watched(*arguments):
        at_start.extend((vault.config.folder / "ledger.jsonl").read_text().splitlines())
        return real(*arguments)

    monkeypatch.setattr("fedduet.clients.vault.vault.predict_demonstrations", watched)
    answer = vault.synthesize(ask())
    assert isinstance(answer, Synthesized), answer
    (line,) = at_start
    charged = json.loads(line)
    assert (charged["what"], charged["event"]["kind"]) == ("private-prediction", "zcdp")
    rho = charged["event"]["rho"]
    ((batches, rule, tokens),) = calls
    # three texts of each of two labels, of at most six tokens: one record is in one label's batch
    assert [batch.texts for batch in batches] == [3, 3] and tokens == 6
    assert cost(rule, 6, 3) == pytest.approx(rho, rel=1e-9)
    assert rule.contexts == 16  # 32 records, two labels
    assert rule.clip == pytest.approx(16 * math.sqrt(2 * rho / 18))
    assert rho == pytest.approx(zcdp.rho_for(8.0, DELTA), rel=1e-4)
    receipt = answer.receipt
    assert (receipt.mechanism, receipt.clip, receipt.records) == (
        "private-prediction",
        rule.clip,
        32,
    )
    assert receipt.epsilon == receipt.epsilon_total == compose([Event.zcdp(rho)], DELTA)
    assert 7.99 < receipt.epsilon <= 8 and receipt.steps == 18
    assert not (vault.config.folder / "models" / "r" / "generator-0").exists()


def test_every_record_is_in_one_context_and_labels_are_filled_up_alike(opened, calls):
    vault = opened({"batches": 2, "contexts": 4})
    assert isinstance(vault.synthesize(ask(per_label=4)), Synthesized)
    ((batches, rule, _),) = calls
    assert rule.contexts == 4 and [batch.texts for batch in batches] == [2] * 4
    present = [[prompt for prompt in batch.contexts if prompt] for batch in batches]
    assert sum(map(len, present)) == 32
    shares = [record.label for record in vault._records.train]
    assert [sum(map(len, present[i : i + 2])) for i in (0, 2)] == [shares.count(0), shares.count(1)]
    # two deviations above 8 expected ones: labels and batches look alike unless one is far larger
    assert {max(14, len(found)) for found in present} == {len(batch.contexts) for batch in batches}


def test_rounds_are_planned_together_beside_a_training(opened, calls):
    vault = opened()
    _, two = (vault.synthesize(ask(f"m{i}", round=i, rounds=2)) for i in range(2))
    (_, first, _), (_, second, _) = calls
    assert first == second and 7.98 < two.receipt.epsilon_total <= 8.0
    assert first.rho * 36 == pytest.approx(zcdp.rho_for(8.0, DELTA), rel=1e-3)
    over = vault.synthesize(ask("m3", run="other"))
    assert isinstance(over, Refused) and over.kind == "budget"
    assert len(ledger_of(vault).entries()) == 2


def test_the_same_id_gets_the_same_texts_for_one_charge(opened, calls):
    first = opened().synthesize(ask())
    assert opened().synthesize(ask()) == first and len(calls) == 1


def test_an_infinite_epsilon_needs_leave_and_clips_nothing(opened, calls):
    assert isinstance(opened().synthesize(ask(epsilon=math.inf)), Refused)
    vault = opened(policy={"allow_unprotected": True}, folder="open")
    answer = vault.synthesize(ask(epsilon=math.inf))
    assert answer.receipt.mechanism == "none" and answer.receipt.epsilon == math.inf
    ((_, rule, _),) = calls
    assert isinstance(rule, ClippedDifferences) and rule.clip >= 1e6


def test_the_other_rule_is_charged_alike(opened, calls):
    answer = opened({"rule": "argmax"}).synthesize(ask())
    ((_, rule, _),) = calls
    rho = zcdp.rho_for(8.0, DELTA)
    assert rule.sigma == pytest.approx(math.sqrt(18 / (2 * rho)), rel=1e-4)
    assert answer.receipt.mechanism == "private-prediction"


@pytest.mark.parametrize(
    ("declared", "predicts"), [(None, False), (200, True), (201, False), (30, True)]
)
def test_auto_goes_by_the_declared_size_alone(declared, predicts):
    """However many records there are: that number is private."""
    generator = check(
        GeneratorConfig, {"path": "x", "method": "auto", "declared_size": declared}, "generator"
    )
    assert generator.predicts is predicts


def test_auto_of_a_site_that_declares_nothing_trains(site, seen):
    answer = site(generator={"method": "auto"}).synthesize(ask())
    assert answer.receipt.mechanism == "dp-sgd" and len(seen.generator) == 1


def test_an_unknown_method_is_named():
    with pytest.raises(ConfigError, match=r"generator\.method: found 'lora'; input should be"):
        check(GeneratorConfig, {"path": "x", "method": "lora"}, "generator")


def test_the_secret_is_made_once_and_for_its_owner(opened, calls):
    vault = opened(seeded_noise=False)
    vault.synthesize(ask())
    file = vault.config.folder / "contexts.secret"
    before = file.read_bytes()
    assert len(before) == 32 and file.stat().st_mode & 0o077 == 0
    assert prediction.site_secret(vault.config) == before
