"""Epsilon and noise multipliers against published values, exact formulas, a second accountant, and
the order they must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedduet.lm.dp.accounting import (
    BudgetError,
    Event,
    compose,
    compose_prv,
    compose_rdp,
    noise_multiplier_for,
)
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.stats import norm

DELTA = 1e-5
RATE, STEPS = 64 / 1000, 157  # 1,000 records, batches of 64, 10 epochs


def sgd(sigma: float, rate: float = RATE, steps: int = STEPS) -> Event:
    return Event.poisson_gaussian(sigma, rate, steps)


# --- Published and exact values -------------------------------------------------------------------


def test_rdp_of_opacus_own_example():
    """opacus/tests/accountants_test.py: sigma 1.5, q 0.04, 90 epochs."""
    assert compose_rdp([sgd(1.5, 0.04, int(90 / 0.04))], DELTA) == pytest.approx(
        7.32911117143, abs=1e-8
    )


@pytest.mark.parametrize(("rounds", "sigma"), [(1, 0.8350), (2, 0.9842), (3, 1.1039)])
def test_noise_for_epsilon_8_over_rounds(rounds, sigma):
    found = noise_multiplier_for(8.0, DELTA, RATE, STEPS, rounds)
    assert found == pytest.approx(sigma, rel=1e-3)
    assert (
        compose([sgd(found)] * rounds, DELTA) <= 8.0 < compose([sgd(found * 0.998)] * rounds, DELTA)
    )


@pytest.mark.parametrize(("rounds", "split"), [(2, 1.217), (3, 1.594)])
def test_one_budget_over_all_rounds_needs_less_noise_than_a_split_one(rounds, split):
    assert noise_multiplier_for(8.0 / rounds, DELTA / rounds, RATE, STEPS) == pytest.approx(
        split, rel=1e-3
    )
    assert noise_multiplier_for(8.0, DELTA, RATE, STEPS, rounds) < 0.82 * split


def test_rounds_compose_and_do_not_add():
    once, thrice = compose([sgd(0.8358)], DELTA), compose([sgd(0.8358)] * 3, DELTA)
    assert once == pytest.approx(7.979, abs=2e-3)
    assert thrice == pytest.approx(13.84, abs=0.01)  # 23.9 if added


def test_rdp_is_looser_and_needs_the_published_noise():
    assert compose_rdp([sgd(0.8835)], DELTA) == pytest.approx(8.0, abs=0.01)
    assert compose_prv([sgd(0.8356)], DELTA) == pytest.approx(8.0, abs=0.01)


@pytest.mark.parametrize(("sigma", "count"), [(5.0, 1), (1.0, 1), (12.0, 7)])
def test_gaussian_against_the_exact_formula(sigma, count):
    """Balle and Wang 2018, Theorem 8: delta(epsilon) of a Gaussian mechanism, here of `count` as
    one."""
    epsilon, one = compose([Event.gaussian(sigma, count)], DELTA), sigma / math.sqrt(count)

    def delta_at(value: float) -> float:
        return norm.cdf(0.5 / one - value * one) - math.exp(value) * norm.cdf(
            -0.5 / one - value * one
        )

    assert delta_at(epsilon) <= DELTA <= delta_at(epsilon - 1e-3)


@pytest.mark.parametrize(
    ("sigma", "rate", "delta"), [(0.7, 0.1, 1e-5), (1.2, 0.5, 1e-6), (0.5, 0.02, 1e-4)]
)
def test_one_poisson_step_against_numerical_integration(sigma, rate, delta):
    """The hockey-stick divergence between the sampled and the plain Gaussian, in both
    directions."""
    x = np.linspace(-12 * sigma, 1 + 12 * sigma, 400_001)
    without = norm.pdf(x, 0, sigma)
    with_record = (1 - rate) * without + rate * norm.pdf(x, 1, sigma)

    def delta_at(value: float) -> float:
        return max(
            np.trapezoid(np.maximum(first - math.exp(value) * second, 0), x)
            for first, second in ((with_record, without), (without, with_record))
        )

    epsilon = compose([sgd(sigma, rate, 1)], delta)
    assert delta_at(epsilon) <= delta * (1 + 1e-6)
    assert delta_at(epsilon - 2e-3) > delta


@pytest.mark.parametrize(
    "events",
    [
        [sgd(0.8358)],
        [sgd(1.0, 0.01, 500), Event.gaussian(5.0, 3)],
        [sgd(0.9), sgd(1.4, 0.02, 300), Event.gaussian(8.0)],
        [sgd(1.0, 0.001, 10_000)],
    ],
)
def test_two_accountants_agree(events):
    epsilon = compose(events, DELTA)
    error = 0.004 * epsilon
    assert compose_prv(events, DELTA, error) == pytest.approx(epsilon + error, rel=0.02)
    assert epsilon < compose_rdp(events, DELTA)


# --- Order ----------------------------------------------------------------------------------------

sigmas = some.floats(0.3, 50)
events = some.one_of(
    some.builds(sgd, sigmas, some.floats(0.001, 1.0), some.integers(1, 500)),
    some.builds(Event.gaussian, some.floats(0.5, 50), some.integers(1, 5)),
)
quick = settings(max_examples=6, deadline=None)


@quick
@given(sigmas, some.floats(0.001, 1.0), some.integers(1, 300), some.floats(1.01, 3))
def test_more_noise_fewer_steps_and_a_smaller_rate_cost_less(sigma, rate, steps, factor):
    epsilon = compose([sgd(sigma, rate, steps)], DELTA)
    assert compose([sgd(sigma * factor, rate, steps)], DELTA) <= epsilon * (1 + 1e-9)
    assert compose([sgd(sigma, rate, math.ceil(steps * factor))], DELTA) >= epsilon * (1 - 1e-9)
    assert compose([sgd(sigma, rate / factor, steps)], DELTA) <= epsilon * (1 + 1e-9)
    assert compose([sgd(sigma, rate, steps)], DELTA / factor) >= epsilon


@quick
@given(some.lists(events, max_size=3), events)
def test_one_more_event_costs_and_order_does_not_matter(first, more):
    before, after = compose(first, DELTA), compose([*first, more], DELTA)
    assert after >= before * (1 - 1e-9)
    assert after >= compose([more], DELTA) * (1 - 1e-9)
    assert compose([more, *reversed(first)], DELTA) == pytest.approx(after, rel=1e-6)


@settings(max_examples=3, deadline=None)
@given(some.floats(0.05, 20), some.integers(1, 3))
def test_a_plan_is_kept_and_tight(epsilon, rounds):
    sigma = noise_multiplier_for(epsilon, DELTA, 0.02, 200, rounds)
    assert compose([sgd(sigma, 0.02, 200)] * rounds, DELTA) <= epsilon
    assert compose([sgd(sigma * 0.997, 0.02, 200)] * rounds, DELTA) > epsilon


# --- Edges ----------------------------------------------------------------------------------------


def test_nothing_costs_nothing_and_none_costs_everything():
    for accountant in (compose, compose_rdp, compose_prv):
        assert accountant([], DELTA) == 0.0
        assert accountant([sgd(2.0), Event.none()], DELTA) == math.inf
    assert noise_multiplier_for(math.inf, DELTA, RATE, STEPS) == 0.0


def test_a_plan_without_room_says_so():
    with pytest.raises(BudgetError, match="with any noise multiplier up to 100000"):
        noise_multiplier_for(1e-7, 1e-12, 1.0, 100_000)


@pytest.mark.parametrize("steps", [100, 115, 125, 227, 231])
def test_epsilon_is_finite_and_ordered_where_its_exponential_underflows(steps):
    """exp(-epsilon) is 0 or subnormal from 708 on; the bound still grows with the steps, near their
    mean privacy loss."""
    epsilon = compose([sgd(0.30078125, 0.484375, steps)], DELTA)
    assert (
        compose([sgd(0.30078125, 0.484375, steps - 5)], DELTA)
        < epsilon
        < compose([sgd(0.30078125, 0.96875, steps)], DELTA)
    )
    assert 350 < epsilon < 1400


def test_hardly_any_noise_is_still_bounded():
    """An epsilon of millions: the grid is coarsened, nothing overflows and the bound holds (one
    Gaussian: 1 / 2 sigma^2 and more)."""
    assert 5000 < compose([Event.gaussian(0.01)], DELTA) < 5600
    assert math.isfinite(compose([sgd(0.01, 0.5, 1000)], DELTA))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "laplace"}, "'laplace'; allowed: poisson_gaussian, gaussian, zcdp, none"),
        ({"kind": "gaussian", "noise_multiplier": 0.0}, "noise_multiplier: found 0.0"),
        ({"kind": "gaussian", "noise_multiplier": math.nan}, "noise_multiplier: found nan"),
        ({"kind": "gaussian", "noise_multiplier": 1.0, "steps": 5}, "count for gaussian"),
        (
            {"kind": "poisson_gaussian", "noise_multiplier": 1.0, "sample_rate": 1.5},
            "sample_rate: found 1.5",
        ),
        (
            {"kind": "poisson_gaussian", "noise_multiplier": 1.0, "sample_rate": 0.5, "steps": 0},
            "steps: found 0",
        ),
        ({"kind": "none", "sigma": 1}, "found keys"),
    ],
)
def test_events_that_cannot_be(values, words):
    with pytest.raises(ValueError, match=words):
        Event.from_dict(values)


@quick
@given(events)
def test_an_event_survives_json(event):
    assert Event.from_dict(event.to_dict()) == event
