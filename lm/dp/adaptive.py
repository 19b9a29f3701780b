"""What plans cost together when each was chosen by somebody who saw the answers to those before.

Composing privacy loss distributions as if all had been fixed beforehand is wrong then
(arXiv 2602.06756). The rule here is the filter of Gaussian differential privacy (Smith and Thakurta
2022, arXiv 2210.17520; Koskela, Tobaben and Honkela 2023, arXiv 2209.15596) with a part D of delta
set aside for what no Gaussian bounds; docs/privacy.md has the theorem and its proof:

- A plan is fixed when its first message comes: an `Event` of all its rounds. Inside it privacy
  loss distributions compose. It is (mu, d)-Gaussian when at every epsilon its delta is at most
  d + (1 - d) delta_G(epsilon; mu), delta_G that of N(0, 1) against N(mu, 1).
- Plans, chosen however, are (epsilon, delta)-private while the sum of their mu^2 stays within B^2
  and that of their d within D, where D + (1 - D) delta_G(epsilon; B) = delta.
- A plan that is the only one needs no filter: its own privacy loss distribution is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from fedduet.lm.dp import zcdp
from fedduet.lm.dp.accounting import (
    CELLS,
    LARGEST_NOISE,
    PRECISION,
    SEARCH_CELLS,
    SMALLEST_NOISE,
    BudgetError,
    Event,
    compose,
    distribution_of,
    noise_multiplier_for,
    smallest,
    smallest_epsilon,
)
from scipy.special import log_ndtr, ndtr

TAIL = 0.1  # D as a part of delta [O]: a twentieth costs sampled plans more, a fifth plain ones
_GRID = 4096  # points at which a plan's delta is held against a Gaussian's [O]
_LARGEST_EPSILON = 500.0  # beyond it exp(epsilon) is no use; sampling is not counted on then


def compose_adaptively(plans: Sequence[Event], delta: float) -> float:
    """Epsilon at `delta` of all `plans` together, whoever chose them and after whatever: an upper
    bound, in their order. 0.0 for no plan, `math.inf` when one is "none"."""
    if len(plans) < 2 or any(plan.kind == "none" for plan in plans):
        return compose(plans, delta)
    mu, aside = math.sqrt(sum(_squares(plans, delta))), TAIL * delta
    return smallest_epsilon(
        lambda epsilon: aside + (1 - aside) * float(gaussian_delta(epsilon, mu)), delta
    )


def noise_multiplier_on_top(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    rounds: int = 1,
    spent: Sequence[Event] = (),
) -> float:
    """The smallest noise multiplier with which a plan of `rounds` times `steps` Poisson steps, on
    top of the plans `spent`, stays within `epsilon` at `delta` by the rule above.

    Rounded up, at most PRECISION above the true value. 0.0 for an infinite epsilon. Raises
    BudgetError when no noise is enough, ValueError for an epsilon, rounds or steps that are not
    positive.
    """
    if not spent or math.isinf(epsilon):
        return noise_multiplier_for(epsilon, delta, sample_rate, steps, rounds)
    if not epsilon > 0 or rounds < 1:
        raise ValueError(f"found epsilon {epsilon!r}, {rounds!r} rounds; allowed: above 0, and 1")
    already = compose_adaptively(spent, delta)
    room = _largest_mu(epsilon, delta) ** 2 - sum(_squares(spent, delta))
    if already >= epsilon or room <= 0:
        raise BudgetError(
            f"budget {epsilon:g} at delta {delta:g}: {already:.4g} is spent already, so no noise"
            " makes room for another release"
        )

    def fits(cells: int) -> Callable[[float], bool]:
        def check(sigma: float) -> bool:
            plan = Event.poisson_gaussian(sigma, sample_rate, steps * rounds)
            if sample_rate == 1.0:
                return _squares([plan], delta)[0] <= room
            tail = _tail(sum(not _is_plain(one) for one in spent), delta)
            return _is_gaussian(plan, math.sqrt(room), tail, cells)

        return check

    coarse = smallest(
        fits(SEARCH_CELLS), low=SMALLEST_NOISE, high=LARGEST_NOISE, start=1.0, ratio=2.0
    )
    sigma = smallest(
        fits(CELLS),
        low=SMALLEST_NOISE,
        high=LARGEST_NOISE,
        start=coarse or LARGEST_NOISE,
        ratio=1 + PRECISION / 2,
    )
    if sigma is None:
        raise BudgetError(
            f"budget {epsilon:g} at delta {delta:g}: {already:.4g} is spent, and {rounds} x {steps}"
            f" steps at sample rate {sample_rate:.4g} do not fit the rest with any noise multiplier"
            f" up to {LARGEST_NOISE:g}; allowed: fewer steps, a smaller sample rate, or a larger"
            " budget"
        )
    return sigma


def rho_on_top(epsilon: float, delta: float, rounds: int = 1, spent: Sequence[Event] = ()) -> float:
    """The largest rho with which a plan of `rounds` zCDP releases, on top of the plans `spent`,
    stays within `epsilon` at `delta`; rounded down to five digits, on top of others by up to one
    percent. Raises BudgetError when none does."""
    rho = zcdp.rho_for(epsilon, delta)
    if spent:
        already, low, high = compose_adaptively(spent, delta), 0.0, rho
        while already < epsilon and high > 1e-9 and high - low > 0.01 * high:
            middle = (low + high) / 2 if low else high / 4
            fits = compose_adaptively([*spent, Event.zcdp(middle)], delta) <= epsilon
            low, high = (middle, high) if fits else (low, middle)
        if not low:
            raise BudgetError(
                f"budget {epsilon:g} at delta {delta:g}: {already:.4g} is spent already, so no rho"
                " makes room for another release"
            )
        rho = low
    unit = 10.0 ** (math.floor(math.log10(rho / rounds)) - 4)
    return float(f"{math.floor(rho / rounds / unit) * unit:.10g}")


# --- Plans as Gaussians ---------------------------------------------------------------------------


def gaussian_delta(epsilon: float | np.ndarray, mu: float) -> np.ndarray:
    """delta_G(epsilon; mu) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)
    (Dong, Roth and Su 2019, Corollary 2.13)."""
    epsilon = np.asarray(epsilon, dtype=float)
    lost = np.exp(np.minimum(epsilon + log_ndtr(-mu / 2 - epsilon / mu), 0.0))
    return np.maximum(ndtr(mu / 2 - epsilon / mu) - lost, 0.0)


def _squares(plans: Sequence[Event], delta: float) -> list[float]:
    """mu^2 of each plan. The k-th that is no plain Gaussian has D / (k (k + 1)) as its d; together
    they are below D."""
    squares, others = [], 0
    for plan in plans:
        mu = _unsampled_mu(plan)
        if not _is_plain(plan):
            mu = _smallest_mu(plan, _tail(others, delta))
            others += 1
        squares.append(mu * mu)
    return squares


def _is_plain(plan: Event) -> bool:
    return plan.kind != "zcdp" and plan.sample_rate == 1.0


def _unsampled_mu(plan: Event) -> float:
    """The mu of a plan in which every record is in every sum: sampling only helps. Of zCDP none is
    known without a tail."""
    if plan.kind == "zcdp":
        return math.inf
    return math.sqrt(plan.steps * plan.count) / plan.noise_multiplier


def _tail(before: int, delta: float) -> float:
    return TAIL * delta / ((before + 1) * (before + 2))


def _largest_mu(epsilon: float, delta: float) -> float:
    """B: the largest mu with D + (1 - D) delta_G(epsilon; mu) <= delta, rounded down."""
    aside = TAIL * delta
    low, high = 0.0, 1.0
    while aside + (1 - aside) * gaussian_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        inside = aside + (1 - aside) * gaussian_delta(epsilon, middle) <= delta
        low, high = (middle, high) if inside else (low, middle)
    return low


@lru_cache(maxsize=4096)
def _smallest_mu(plan: Event, tail: float) -> float:
    """The smallest mu with which the plan is (mu, tail)-Gaussian, rounded up."""
    low, high = 0.0, min(_unsampled_mu(plan), 100.0)
    while not _is_gaussian(plan, high, tail, CELLS):
        high *= 2
        if high > 1e6:
            return math.inf
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _is_gaussian(plan, middle, tail, CELLS) else (middle, high)
    return high


def _is_gaussian(plan: Event, mu: float, tail: float, cells: int) -> bool:
    """Whether at every epsilon the plan's delta is at most tail + (1 - tail) delta_G(epsilon; mu).

    Both fall with epsilon, so a delta at one point of a grid below the Gaussian's at the next shows
    it for all between; above the grid delta is at most `tail`. Both directions (a record added, or
    removed) are in the distribution's delta at epsilon >= 0, and so are both at negative ones:
    delta(-e) of one is 1 - exp(-e) (1 - delta(e)) of the other.
    """
    if mu >= _unsampled_mu(plan):
        return True
    profile = _profile(plan, tail, cells)
    if profile is None:
        return False
    epsilons, deltas = profile
    return bool(np.all(deltas[:-1] <= tail + (1 - tail) * gaussian_delta(epsilons[1:], mu)))


@lru_cache(maxsize=64)
def _profile(plan: Event, tail: float, cells: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Epsilons from 0 to where the plan's delta is at most `tail`, and its deltas there; None where
    that is out of reach."""
    composed = distribution_of(plan, cells)
    with np.errstate(over="ignore"):
        end = float(composed.get_epsilon_for_delta(tail))
    if not end < _LARGEST_EPSILON:
        return None
    epsilons = np.linspace(0.0, end, _GRID)
    return epsilons, composed.get_delta_for_epsilon(epsilons)
