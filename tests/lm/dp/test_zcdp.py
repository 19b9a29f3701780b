"""Zero-concentrated DP against exact sums: of two Gaussians, of composed exponential mechanisms, and
beside DP-SGD."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from fedduet.lm.dp import zcdp
from fedduet.lm.dp.accounting import Event, compose, compose_prv, compose_rdp
from scipy.stats import binom, norm

DELTA = 1e-5


def exact_delta(eta: float, t: float, tokens: int, epsilon: float) -> float:
    """Hockey-stick divergence of `tokens` two-point mechanisms whose loss is t or t - eta: the worst
    case of a mechanism of bounded range eta (Dong, Durfee and Rogers 2020), by a binomial sum."""
    share = (1 - math.exp(t - eta)) / (1 - math.exp(-eta))  # of the loss t, under the first
    counts = np.arange(tokens + 1)
    losses = counts * t + (tokens - counts) * (t - eta)
    weights = binom.pmf(counts, tokens, share)
    return float((weights * -np.expm1(np.minimum(0.0, epsilon - losses))).sum())


def test_rho_and_clip_of_the_plan_that_was_calculated_by_hand():
    """B = 8, 24 tokens, temperature 1, delta 1e-4: the clip that epsilon 1, 2, 4 and 8 leave."""
    clips = [8 * math.sqrt(2 * zcdp.rho_for(epsilon, 1e-4) / 24) for epsilon in (1, 2, 4, 8)]
    assert clips == pytest.approx([0.4655, 0.8623, 1.5742, 2.8072], abs=2e-4)


def test_epsilon_of_a_rho_and_back():
    assert zcdp.epsilon_of(0.5, DELTA) == pytest.approx(4.72839, abs=1e-4)
    # rho + 2 sqrt(rho log(1 / delta)), Bun and Steinke's own, is looser by a few percent
    assert 0.85 * 5.2985 < zcdp.epsilon_of(0.5, DELTA) < 5.2985
    for epsilon in (0.1, 1.0, 8.0, 60.0):
        rho = zcdp.rho_for(epsilon, DELTA)
        assert zcdp.epsilon_of(rho, DELTA) == pytest.approx(epsilon, rel=1e-6)
        assert zcdp.epsilon_of(rho, DELTA) <= epsilon
    assert zcdp.epsilon_of(0.0, DELTA) == 0.0 and zcdp.rho_for(math.inf, DELTA) == math.inf


@pytest.mark.parametrize(("eta", "tokens"), [(0.05, 400), (0.3, 48), (1.2, 24)])
def test_composed_exponential_mechanisms_stay_under_the_bound_and_close_to_it(eta, tokens):
    rho = tokens * eta**2 / 8
    epsilon = zcdp.epsilon_of(rho, DELTA)
    worst = max(
        exact_delta(eta, share * eta, tokens, epsilon) for share in np.linspace(0.02, 0.98, 97)
    )
    # half of rho would be refuted: its epsilon permits far less than the mechanism does
    less = zcdp.epsilon_of(rho / 2, DELTA)
    refuted = max(
        exact_delta(eta, share * eta, tokens, less) for share in np.linspace(0.02, 0.98, 97)
    )
    assert 0.02 * DELTA < worst <= DELTA < refuted


@pytest.mark.parametrize("rho", [0.02, 0.5, 3.0])
def test_the_profile_dominates_mechanisms_of_that_rho_and_is_one(rho):
    interval = 1e-3
    steps, deltas = zcdp.profile(rho, interval)
    epsilons = steps * interval
    sigma = 1 / math.sqrt(2 * rho)
    gauss = norm.cdf(1 / (2 * sigma) - epsilons * sigma) - np.exp(epsilons) * norm.cdf(
        -1 / (2 * sigma) - epsilons * sigma
    )
    assert (deltas >= gauss - 1e-12).all() and (deltas >= -np.expm1(epsilons) - 1e-12).all()
    # convex in e^epsilon: nowhere above the line between its neighbours
    x, gap = np.exp(epsilons), 1e-13
    share = np.diff(x)[:-1] / (x[2:] - x[:-2])
    assert (deltas[1:-1] <= deltas[:-2] * (1 - share) + deltas[2:] * share + gap).all()
    assert deltas[-1] < 1e-15
    eta = math.sqrt(8 * rho / 30)
    for epsilon in (0.0, 0.5, 2.0, 5.0):
        bound = float(np.interp(epsilon, epsilons, deltas, right=0.0))
        for share in (0.2, 0.5, 0.8):
            assert exact_delta(eta, share * eta, 30, epsilon) <= bound + 1e-12


def test_rhos_add_and_stand_beside_other_mechanisms():
    one = compose([Event.zcdp(0.3)], DELTA)
    assert one == pytest.approx(zcdp.epsilon_of(0.3, DELTA), rel=1e-12)
    assert compose([Event.zcdp(0.1)] * 3, DELTA) == pytest.approx(one, rel=1e-12)
    sgd = Event.poisson_gaussian(1.0, 0.1, 100)
    alone, both = compose([sgd], DELTA), compose([sgd, Event.zcdp(0.3)], DELTA)
    assert alone == pytest.approx(7.0466, abs=1e-3) and both == pytest.approx(8.3171, abs=5e-3)
    gauss = compose([sgd, Event.gaussian(1 / math.sqrt(0.6))], DELTA)
    # the Gaussian of that rho is cheaper, RDP is dearer, epsilons added much dearer
    assert gauss < both < compose_rdp([sgd, Event.zcdp(0.3)], DELTA) < alone + one
    assert compose([sgd, Event.zcdp(1e-9)], DELTA) == pytest.approx(alone, abs=2e-3)
    assert compose([Event.zcdp(0.3), Event.none()], DELTA) == math.inf


def test_composed_profile_covers_a_mechanism_that_is_known_exactly():
    """DP-SGD and an exponential mechanism with a loss of two values, both as they are."""
    eta = 0.4
    share = (1 - math.exp(-eta / 2)) / (1 - math.exp(-eta))
    pair = {0: math.log(share), 1: math.log(1 - share)}
    other = {value: log - (eta / 2 - value * eta) for value, log in pair.items()}
    interval = 1e-3
    known = pld.from_two_probability_mass_functions(
        other, pair, value_discretization_interval=interval
    )
    sgd = pld.from_gaussian_mechanism(
        1.0, sampling_prob=0.1, value_discretization_interval=interval
    )
    exact = sgd.self_compose(100).compose(known.self_compose(25)).get_epsilon_for_delta(DELTA)
    bound = compose([Event.poisson_gaussian(1.0, 0.1, 100), Event.zcdp(25 * eta**2 / 8)], DELTA)
    assert 0.9 * bound < exact <= bound


def test_rdp_of_zcdp_is_rho_alpha():
    """Opacus' grid of orders is a little above the best of all orders."""
    found = compose_rdp([Event.zcdp(0.2)], DELTA)
    assert 1.0 <= found / zcdp.epsilon_of(0.2, DELTA) < 1.001


@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf, math.nan])
def test_a_rho_that_is_none_is_named(rho):
    with pytest.raises(ValueError, match=r"event rho: found .* of kind zcdp; allowed: a finite"):
        Event.zcdp(rho)


def test_events_keep_to_their_kind():
    assert Event.from_dict(Event.zcdp(0.25).to_dict()) == Event("zcdp", rho=0.25)
    with pytest.raises(ValueError, match="event rho: found 0\\.1 of kind gaussian"):
        Event("gaussian", 1.0, rho=0.1)
    with pytest.raises(ValueError, match="event kind: found 'zcdp'; allowed here"):
        compose_prv([Event.zcdp(0.25)], DELTA)
    for bad in ({"epsilon": 0.0}, {"epsilon": -1.0}):
        with pytest.raises(ValueError, match="epsilon: found"):
            zcdp.rho_for(delta=DELTA, **bad)
    with pytest.raises(ValueError, match="delta: found 1\\.0"):
        zcdp.epsilon_of(0.1, 1.0)
