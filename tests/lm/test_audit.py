"""The audit's bound against hand-made mechanisms whose epsilon is known, and against broken forms of our own DP-SGD."""

import numpy as np
import pytest
import torch

import lm.dpsgd
from lm.accounting import Event, compose, noise_multiplier_for
from lm.audit import DiracCanaries, GradientWatcher, audit, lower_bound, p_value
from lm.batch import encode_document
from lm.dpsgd import DPConfig, planned_steps, prepare_generator, train_generator
from lm.load import load_causal_lm, load_tokenizer
from lm.per_example import loss_batch
from lm.randomness import SeededNoise


def test_p_value_of_pure_dp_is_a_binomial_tail():
    from scipy import stats

    for epsilon, right in ((0.0, 60), (1.0, 80), (2.0, 95)):
        chance = 1 / (1 + np.exp(-epsilon))
        assert p_value(100, 100, right, epsilon, 0.0) == pytest.approx(stats.binom.sf(right - 1, 100, chance))
    assert p_value(100, 100, 90, 1.0, 1e-3) > p_value(100, 100, 90, 1.0, 0.0)  # delta makes lucky guesses likelier
    with pytest.raises(ValueError, match="right <= guesses <= canaries"):
        p_value(10, 11, 5, 1.0, 0.0)


def test_all_right_of_a_hundred():
    assert lower_bound(100, 100, 100, 0.0) == pytest.approx(np.log(0.05**0.01 / (1 - 0.05**0.01)), abs=2e-3)  # 3.49
    assert lower_bound(100, 100, 50, 0.0) == 0.0


def test_randomised_response_is_bounded_below_its_epsilon_and_not_far_below():
    """Each canary's coin is shown, flipped with probability 1 / (1 + e^eps): exactly eps-DP in each coin."""
    draws, found = np.random.default_rng(0), []
    for _ in range(40):
        included = draws.random(1000) < 0.5
        shown = included ^ (draws.random(1000) < 1 / (1 + np.exp(2.0)))
        found.append(audit(shown + 1e-6 * draws.random(1000), included, 0.0).epsilon)
    assert sum(bound > 2.0 for bound in found) <= 5  # 95 % confidence
    assert np.median(found) > 1.5


def test_scores_without_information_show_nothing():
    draws = np.random.default_rng(1)
    bounds = [audit(draws.random(400), draws.random(400) < 0.5, 1e-5).epsilon for _ in range(30)]
    assert sum(bound > 0.3 for bound in bounds) <= 2


# -- Our own DP-SGD, whole and broken -------------------------------------------------------------------------------------

CANARIES, DELTA, CLAIM = 500, 1e-5, 1.0
CONFIG = DPConfig(rank=8, logical_batch=30, steps=24, micro_batch=64, max_tokens=16, precision="fp32")


def audited(folder, monkeypatch, sigma=1.0, unclipped=False, batches=None, charged=1.0, natural=False):
    """The bound of a training on canaries, each in or out by a coin, against noise planned for `CLAIM`; the other arguments break it.

    `sigma`: factor on the planned noise. `charged`: the ledger's charge as a share of the true one.
    """
    draws = np.random.default_rng(3)
    tokenizer = load_tokenizer(folder, generates=True)
    model = prepare_generator(load_causal_lm(folder, tokenizer=tokenizer), CONFIG, 0)
    texts = ["".join(draws.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(CANARIES)]
    included = draws.random(CANARIES) < 0.5
    inside = [text for text, was in zip(texts, included, strict=True) if was]
    steps, rate = planned_steps(CONFIG, len(inside))
    planned = noise_multiplier_for(CLAIM / charged, DELTA, rate, steps)
    assert compose([Event.poisson_gaussian(planned, rate, steps)], DELTA) <= CLAIM / charged
    if batches:
        monkeypatch.setattr(lm.dpsgd, "poisson_batch", batches)
    if unclipped:
        monkeypatch.setattr(lm.per_example.torch.Tensor, "clamp_max", lambda factors, most: torch.ones_like(factors))
    rows = [encode_document(tokenizer, "", text, 16) for text in texts]
    if natural:
        expected = rate * len(inside)
        watch = GradientWatcher(
            model, loss_batch(rows, tokenizer.pad_token_id, True), CONFIG.clip, planned * sigma, rate, expected, every=6
        )
        engine = None
    else:
        watch = DiracCanaries(model, rows, CONFIG.clip)
        engine = watch.engine
    randomness = SeededNoise(5)
    train_generator(model, tokenizer, [""] * len(inside), inside, CONFIG, planned * sigma, randomness, watch=watch, engine=engine)
    return audit(watch.scores, included, DELTA).epsilon


def test_the_mechanism_that_runs_stays_below_its_claim_and_the_audit_sees_it(tiny_model, monkeypatch):
    assert audited(tiny_model, monkeypatch) <= CLAIM
    assert 0.4 < audited(tiny_model, monkeypatch, charged=1 / 8) <= 8 * CLAIM  # noise for epsilon 8


def test_natural_canaries_show_less_than_the_claim(tiny_model, monkeypatch):
    assert audited(tiny_model, monkeypatch, natural=True) <= CLAIM


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("no noise", {"sigma": 0.0}),
        ("no clipping", {"unclipped": True}),
        ("everybody in every batch, noise planned for a sample", {"batches": lambda n, rate, randomness: list(range(n))}),
        ("a thirtieth of the charge (500 canaries do not see a half)", {"charged": 1 / 30}),
    ],
)
def test_broken_mechanisms_refute_their_claim(tiny_model, monkeypatch, name, broken):
    assert audited(tiny_model, monkeypatch, **broken) > CLAIM, name
