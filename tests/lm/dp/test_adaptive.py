"""Plans chosen by a server that saw the answers before: what they cost bounds every such choice."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedduet.lm.dp import zcdp
from fedduet.lm.dp.accounting import (
    BudgetError,
    Event,
    compose,
    compose_rdp,
    distribution_of,
    noise_multiplier_for,
)
from fedduet.lm.dp.adaptive import (
    TAIL,
    compose_adaptively,
    gaussian_delta,
    noise_multiplier_on_top,
    rho_on_top,
)
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.stats import norm

DELTA = 1e-5


def sgd(sigma: float, rate: float = 0.064, steps: int = 157) -> Event:
    return Event.poisson_gaussian(sigma, rate, steps)


plans = some.one_of(
    some.builds(sgd, some.floats(0.6, 20), some.floats(0.01, 0.9), some.integers(1, 300)),
    some.builds(Event.gaussian, some.floats(0.8, 50), some.integers(1, 5)),
    some.builds(Event.zcdp, some.floats(0.001, 0.5)),
)
quick = settings(max_examples=6, deadline=None)


def test_a_single_plan_is_exact_and_nothing_costs_nothing():
    for plan in (sgd(1.1), Event.gaussian(2.0, 3), Event.zcdp(0.1)):
        assert compose_adaptively([plan], DELTA) == compose([plan], DELTA)
    assert compose_adaptively([], DELTA) == 0.0
    assert compose_adaptively([sgd(2.0), Event.none()], DELTA) == math.inf


def test_plain_gaussians_are_one_gaussian_at_nine_tenths_of_delta():
    """Dong et al. 2019: mu^2 adds; D is a tenth of delta."""
    spent = compose_adaptively([Event.gaussian(3.0, 2), Event.gaussian(1.5)], DELTA)
    mu = math.sqrt(2 / 9 + 1 / 2.25)
    exact = norm.cdf(mu / 2 - spent / mu) - math.exp(spent) * norm.cdf(-mu / 2 - spent / mu)
    assert TAIL * DELTA + (1 - TAIL * DELTA) * exact == pytest.approx(DELTA, rel=1e-6)
    assert spent == pytest.approx(compose([Event.gaussian(1 / mu)], 0.9 * DELTA), abs=1e-4)


@pytest.mark.parametrize(("rate", "steps", "most"), [(0.08, 125, 1.05), (0.0256, 117, 1.11)])
def test_the_cost_of_adaptivity_is_below_that_of_rdp(rate, steps, most):
    texts = sgd(noise_multiplier_for(4.0, DELTA, rate, steps), rate, steps)
    votes = Event.gaussian(noise_multiplier_on_top(8.0, DELTA, 1.0, 1, 3, [texts]), 3)
    fixed, spent = compose([texts, votes], DELTA), compose_adaptively([texts, votes], DELTA)
    assert fixed < spent <= 8.0 and spent > 7.99
    assert spent < most * fixed and spent < compose_rdp([texts, votes], DELTA)


@quick
@given(some.lists(plans, min_size=1, max_size=3), plans)
def test_it_is_never_below_what_the_same_plans_cost_fixed_and_grows(before, more):
    spent = compose_adaptively([*before, more], DELTA)
    assert spent >= compose([*before, more], DELTA) * (1 - 1e-6)
    if len(before) > 1:
        assert spent >= compose_adaptively(before, DELTA)


@settings(max_examples=4, deadline=None)
@given(plans, some.floats(0.3, 6), some.integers(1, 3), some.sampled_from([1.0, 0.05]))
def test_a_plan_on_top_is_kept_and_tight(spent, room, rounds, rate):
    epsilon = compose_adaptively([spent, Event.gaussian(1e4)], DELTA) + room
    sigma = noise_multiplier_on_top(epsilon, DELTA, rate, 50, rounds, [spent])
    assert compose_adaptively([spent, sgd(sigma, rate, 50 * rounds)], DELTA) <= epsilon * (1 + 1e-6)
    assert compose_adaptively([spent, sgd(sigma * 0.99, rate, 50 * rounds)], DELTA) > epsilon


def test_rho_of_a_plan_on_top_is_kept_and_tight():
    assert rho_on_top(8.0, DELTA, 3) == pytest.approx(zcdp.rho_for(8.0, DELTA) / 3, rel=1e-4)
    spent = [Event.gaussian(1.5)]
    rho = rho_on_top(8.0, DELTA, 2, spent)
    assert compose_adaptively([*spent, Event.zcdp(2 * rho)], DELTA) <= 8.0
    assert compose_adaptively([*spent, Event.zcdp(2.03 * rho)], DELTA) > 8.0
    with pytest.raises(BudgetError, match="so no rho makes room"):
        rho_on_top(2.0, DELTA, 1, spent)


@pytest.mark.parametrize("plan", [sgd(0.7, 0.1, 40), sgd(1.2, 0.5, 3), Event.zcdp(0.3)])
def test_a_gaussian_with_its_tail_dominates_the_plan_at_every_epsilon(plan):
    """The cost of (plan, next to nothing) is that of one Gaussian; its delta is held against the
    plan's own at points of no grid, in both directions and at negative epsilons."""
    epsilons = np.sort(np.random.default_rng(0).uniform(0, 12, 500))
    spent = compose_adaptively([plan, Event.gaussian(1e4)], DELTA)
    low, high = 1e-3, 50.0
    while high - low > 1e-7:
        mu = (low + high) / 2
        whole = TAIL * DELTA + (1 - TAIL * DELTA) * gaussian_delta(spent, mu)
        low, high = (mu, high) if whole <= DELTA else (low, mu)
    tail = TAIL * DELTA / 2
    bound = tail + (1 - tail) * gaussian_delta(epsilons, high)
    assert (distribution_of(plan).get_delta_for_epsilon(epsilons) <= bound * (1 + 1e-5)).all()
    slim = tail + (1 - tail) * gaussian_delta(epsilons, 0.97 * high)
    assert (distribution_of(plan).get_delta_for_epsilon(epsilons) > slim).any()


def test_later_plans_have_smaller_tails_and_all_tails_are_within_their_share():
    one = sgd(2.0, 0.05, 100)
    costs = [compose_adaptively([one] * count, DELTA) for count in range(2, 6)]
    assert costs == sorted(costs)
    fixed = [compose([one] * count, DELTA) for count in range(2, 6)]
    assert all(1.0 < a / b < 1.1 for a, b in zip(costs, fixed, strict=True))


def test_no_room_is_said():
    with pytest.raises(BudgetError, match=r"budget 5 at delta 1e-05: 7\.979 is spent already"):
        noise_multiplier_on_top(5.0, DELTA, 0.064, 157, spent=[sgd(0.8358)])
    with pytest.raises(BudgetError, match="with any noise multiplier up to 100000"):
        noise_multiplier_on_top(1e-5, 1e-12, 1.0, 1_000_000, spent=[Event.gaussian(5e5)])
    assert noise_multiplier_on_top(math.inf, DELTA, 0.1, 5, spent=[sgd(1.0)]) == 0.0
    with pytest.raises(ValueError, match="epsilon"):
        noise_multiplier_on_top(0.0, DELTA, 0.1, 5, spent=[sgd(1.0)])
