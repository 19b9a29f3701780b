"""The audit's bound against hand-made mechanisms whose epsilon is known, and against broken forms
of our own DP-SGD."""

import fedduet.lm.dp.dpsgd
import numpy as np
import pytest
import torch
from fedduet.lm.attacks.one_run_audit import (
    DiracCanaries,
    GradientWatcher,
    audit,
    audit_apart,
    lower_bound,
    p_value,
)
from fedduet.lm.dp.accounting import Event, compose, noise_multiplier_for
from fedduet.lm.dp.clipped_sums import loss_batch
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.dp.dpsgd import planned_steps, prepare_generator, train_generator
from fedduet.lm.models.batch import encode_document
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.randomness import SeededNoise


def test_p_value_of_pure_dp_is_a_binomial_tail():
    from scipy import stats

    for epsilon, right in ((0.0, 60), (1.0, 80), (2.0, 95)):
        chance = 1 / (1 + np.exp(-epsilon))
        assert p_value(100, 100, right, epsilon, 0.0) == pytest.approx(
            stats.binom.sf(right - 1, 100, chance)
        )
    # delta makes lucky guesses likelier
    assert p_value(100, 100, 90, 1.0, 1e-3) > p_value(100, 100, 90, 1.0, 0.0)
    with pytest.raises(ValueError, match="right <= guesses <= canaries"):
        p_value(10, 11, 5, 1.0, 0.0)


def test_all_right_of_a_hundred():
    # 3.49
    assert lower_bound(100, 100, 100, 0.0) == pytest.approx(
        np.log(0.05**0.01 / (1 - 0.05**0.01)), abs=2e-3
    )
    assert lower_bound(100, 100, 50, 0.0) == 0.0


def test_randomised_response_is_bounded_below_its_epsilon_and_not_far_below():
    """Each canary's coin is shown, flipped with probability 1 / (1 + e^eps): exactly eps-DP in each
    coin."""
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


# -- Canaries that do not interact -----------------------------------------------------------------


def gaussian_scores(draws, sigma, count):
    included = draws.random(count) < 0.5
    return included + sigma * draws.standard_normal(count), included


def test_the_bound_by_the_curve_is_tight_for_a_gaussian_and_holds():
    draws, sigma = np.random.default_rng(0), noise_multiplier_for(4.0, 1e-5, 1.0, 1)
    found = [
        audit_apart(*gaussian_scores(draws, sigma, 4000), 1e-5, Event.gaussian) for _ in range(20)
    ]
    # 95 % confidence
    assert (
        sum(one.by_curve > 4.0 for one in found) <= 3
        and sum(one.epsilon > 4.0 for one in found) <= 3
    )
    # more than half: a charge that is halved is seen
    assert np.median([one.by_curve for one in found]) > 2.8
    assert (
        0.5 < np.median([one.epsilon for one in found]) < np.median([one.by_curve for one in found])
    )


def test_scores_apart_without_information_show_nothing():
    draws = np.random.default_rng(1)
    found = [
        audit_apart(draws.random(1000), draws.random(1000) < 0.5, 1e-5, Event.gaussian)
        for _ in range(20)
    ]
    assert sum(one.epsilon > 0 or one.by_curve > 0.2 for one in found) <= 2
    assert audit_apart([1.0, 2.0, 3.0], [True] * 3, 1e-5, Event.gaussian).epsilon == 0.0


# -- Our own DP-SGD, whole and broken --------------------------------------------------------------

CANARIES, DELTA, CLAIM = 500, 1e-5, 1.0
CONFIG = DPConfig(
    rank=8, logical_batch=30, steps=24, micro_batch=64, max_tokens=16, precision="fp32"
)


def audited(
    folder,
    monkeypatch,
    sigma=1.0,
    unclipped=False,
    batches=None,
    charged=1.0,
    natural=False,
    canaries=CANARIES,
    claim=CLAIM,
):
    """The bound of a training on canaries, each in or out by a coin, against noise planned for
    `claim`; the other arguments break it.

    `sigma`: factor on the planned noise. `charged`: the ledger's charge as a share of the true one.
    """
    draws = np.random.default_rng(3)
    config = CONFIG.model_copy(update={"logical_batch": canaries * 30 // 500})
    tokenizer = load_tokenizer(folder, generates=True)
    model = prepare_generator(load_causal_lm(folder, tokenizer=tokenizer), config, 0)
    texts = ["".join(draws.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(canaries)]
    included = draws.random(canaries) < 0.5
    inside = [text for text, was in zip(texts, included, strict=True) if was]
    steps, rate = planned_steps(config, len(inside))
    planned = noise_multiplier_for(claim / charged, DELTA, rate, steps)
    assert compose([Event.poisson_gaussian(planned, rate, steps)], DELTA) <= claim / charged
    if batches:
        monkeypatch.setattr(fedduet.lm.dp.dpsgd, "poisson_batch", batches)
    if unclipped:
        monkeypatch.setattr(
            fedduet.lm.dp.clipped_sums.torch.Tensor,
            "clamp_max",
            lambda factors, most: torch.ones_like(factors),
        )
    rows = [encode_document(tokenizer, "", text, 16) for text in texts]
    randomness = SeededNoise(5)
    given = (model, tokenizer, [""] * len(inside), inside, config, planned * sigma, randomness)
    if natural:
        batch, expected = loss_batch(rows, tokenizer.pad_token_id, True), rate * len(inside)
        watch = GradientWatcher(model, batch, config.clip, planned * sigma, rate, expected, every=6)
        train_generator(*given, watch=watch)
        return audit(watch.scores, included, DELTA).epsilon
    watch = DiracCanaries(model, rows, config.clip, planned, rate, rate * len(inside))
    train_generator(*given, watch=watch, engine=watch.engine)
    found = audit_apart(
        watch.scores, included, DELTA, lambda noise: Event.poisson_gaussian(noise, rate, steps)
    )
    return max(found.epsilon, found.by_curve)


def test_the_mechanism_that_runs_stays_below_its_claim_and_the_audit_sees_it(
    tiny_model, monkeypatch
):
    assert audited(tiny_model, monkeypatch) <= CLAIM
    assert 3.0 < audited(tiny_model, monkeypatch, claim=8.0, canaries=2000) <= 8.0


def test_natural_canaries_show_less_than_the_claim(tiny_model, monkeypatch):
    assert audited(tiny_model, monkeypatch, natural=True) <= CLAIM


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("no noise", {"sigma": 0.0}),
        ("no clipping", {"unclipped": True}),
        (
            "everybody in every batch, noise planned for a sample",
            {"batches": lambda n, rate, randomness: list(range(n))},
        ),
        ("half of the charge", {"charged": 1 / 2, "claim": 4.0, "canaries": 4000}),
    ],
)
def test_broken_mechanisms_refute_their_claim(tiny_model, monkeypatch, name, broken):
    bound, claim = audited(tiny_model, monkeypatch, **broken), broken.get("claim", CLAIM)
    # pytest -s -k broken: the table of docs/privacy.md
    print(f"| DP-SGD | {name} | {claim:g} | {bound:.2f} |")
    assert bound > claim, name
