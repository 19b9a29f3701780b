"""Privacy accounting: what mechanisms ran, what they cost together, and how much noise a planned
one needs.

Events that were fixed beforehand are composed here, those that somebody chose after seeing answers
in `adaptive`; epsilons are never added. The neighbouring data sets differ by one record added
or removed. The reference is Google's dp-accounting (privacy loss distributions, PLD; Doroshenko et
al. 2022, "Connect the Dots"), always rounded against us; Opacus' RDP and PRV accountants are there
to check it against.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from fedduet.lm.dp import zcdp

KINDS = ("poisson_gaussian", "gaussian", "zcdp", "none")
# [O] below it epsilon passes 5,000 in one release: such a mechanism is called "none"
SMALLEST_NOISE = 0.01
LARGEST_NOISE = 1e5  # [O] a plan that needs more than this does not fit its budget
PRECISION = 1e-3  # relative, of a planned noise multiplier

INTERVAL = 1e-3  # privacy loss per cell of the discretization before it is refined or coarsened
# [O] cells aimed at for a composed distribution: 0.1 s a call, error under 0.5 % at 10,000 steps
CELLS = 2**16
SEARCH_CELLS = 2**13  # [O] the same for the first, coarse search of a noise multiplier

_Group = tuple[float, float, int]  # noise multiplier, sample rate, steps; (rho, 0.0, 1) for zCDP


class BudgetError(Exception):
    """A release that does not fit a privacy budget; its text says what was spent and what would
    fit."""


@dataclass(frozen=True)
class Event:
    """What a mechanism did to the records.

    kind "poisson_gaussian": `steps` sums of records, each record in each sum with probability
    `sample_rate` on its own (Poisson), plus Gaussian noise (DP-SGD). kind "gaussian": `count` sums
    over all records plus Gaussian noise. kind "zcdp": any mechanism that is `rho`-zCDP (private
    prediction). kind "none": no guarantee, epsilon is infinite. `noise_multiplier` is the standard
    deviation of the noise over the L2 sensitivity to one record added or removed. Raises ValueError
    for values outside these ranges.
    """

    kind: str
    noise_multiplier: float = 0.0
    sample_rate: float = 1.0
    steps: int = 1
    count: int = 1
    rho: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"event kind: found {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.kind == "none":
            return
        if (self.kind == "zcdp") != (0.0 < self.rho < math.inf):
            raise ValueError(
                f"event rho: found {self.rho!r} of kind {self.kind}; allowed: a finite number above"
                " 0 for zcdp, none for others"
            )
        if self.kind == "zcdp":
            return
        if not (SMALLEST_NOISE <= self.noise_multiplier < math.inf):
            raise ValueError(
                f"event noise_multiplier: found {self.noise_multiplier!r}; allowed: a finite number"
                " of at least "
                f"{SMALLEST_NOISE} "
                f'(less noise gives no guarantee worth the name: record kind "none")'
            )
        if not (0.0 < self.sample_rate <= 1.0):
            raise ValueError(
                f"event sample_rate: found {self.sample_rate!r}; allowed: above 0, at most 1"
            )
        for name, value in (("steps", self.steps), ("count", self.count)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"event {name}: found {value!r}; allowed: a whole number of at least 1"
                )
        if (self.kind == "gaussian" and (self.steps, self.sample_rate) != (1, 1.0)) or (
            self.kind == "poisson_gaussian" and self.count != 1
        ):
            raise ValueError(
                f"event {self.kind}: found {self}; allowed: steps and sample_rate for"
                " poisson_gaussian, count for gaussian"
            )

    @staticmethod
    def poisson_gaussian(noise_multiplier: float, sample_rate: float, steps: int) -> Event:
        """DP-SGD: `steps` noisy sums over Poisson samples."""
        return Event("poisson_gaussian", float(noise_multiplier), float(sample_rate), steps)

    @staticmethod
    def gaussian(noise_multiplier: float, count: int = 1) -> Event:
        """`count` noisy sums over all records."""
        return Event("gaussian", float(noise_multiplier), count=count)

    @staticmethod
    def zcdp(rho: float) -> Event:
        """A mechanism, or several, of which a proof says that they are `rho`-zCDP together."""
        return Event("zcdp", rho=float(rho))

    @staticmethod
    def none() -> Event:
        """A release without a guarantee."""
        return Event("none")

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Event:
        """The event `to_dict` wrote. Raises ValueError for unknown or missing keys and for values
        that are no event."""
        try:
            return Event(**values)
        except TypeError as error:
            raise ValueError(
                f"event: found keys {sorted(values)}; allowed: kind and the fields of that kind"
            ) from error

    def times(self, rounds: int) -> Event:
        """The plan of `rounds` such releases."""
        if self.kind == "gaussian":
            return replace(self, count=self.count * rounds)
        if self.kind == "poisson_gaussian":
            return replace(self, steps=self.steps * rounds)
        return replace(self, rho=self.rho * rounds)

    def to_dict(self) -> dict[str, Any]:
        """The fields that matter for this kind, as JSON values."""
        fields = {
            "poisson_gaussian": ("noise_multiplier", "sample_rate", "steps"),
            "gaussian": ("noise_multiplier", "count"),
            "zcdp": ("rho",),
            "none": (),
        }
        values = asdict(self)
        return {"kind": self.kind, **{name: values[name] for name in fields[self.kind]}}


# --- What was spent -------------------------------------------------------------------------------


def compose(events: Iterable[Event], delta: float) -> float:
    """Epsilon at `delta` of all `events` together: an upper bound. 0.0 for no event, `math.inf`
    when one is "none".

    PLD; identical events are one self-composition, and all plain Gaussians are one Gaussian (1 /
    sigma^2 adds, Dong et al. 2019, Corollary 3.3), whose epsilon alone is exact. The rhos of zCDP
    events add; alone their epsilon is `zcdp.epsilon_of`, beside others they are composed as the
    privacy profile that no mechanism of that rho exceeds (`zcdp.profile`).
    """
    return _compose(events, delta, CELLS)


def compose_rdp(events: Iterable[Event], delta: float) -> float:
    """The same by Renyi DP (Opacus; rho alpha for zCDP): looser than `compose`, never an estimate
    from below."""
    groups = _history(events, delta)
    if not groups:
        return math.inf if groups is None else 0.0
    # here, because it loads torch, which no ledger needs
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis import rdp

    orders = RDPAccountant.DEFAULT_ALPHAS
    curve = np.zeros(len(orders))
    for sigma, rate, steps in groups:
        curve += (
            rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=orders)
            if rate
            else sigma * np.array(orders)
        )
    # Opacus warns when the best order is the largest it tries: then the bound is loose, still a
    # bound
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(rdp.get_privacy_spent(orders=orders, rdp=curve, delta=delta)[0])


def compose_prv(events: Iterable[Event], delta: float, error: float = 0.01) -> float:
    """The same by privacy loss random variables (Opacus; Gopi et al. 2021): at most 2 * `error`
    (absolute) too high. Raises ValueError for zCDP, of which it knows no such variable."""
    groups = _history(events, delta)
    if any(rate == 0.0 for _, rate, _ in groups or ()):
        raise ValueError("event kind: found 'zcdp'; allowed here: poisson_gaussian, gaussian, none")
    if groups is None:
        return math.inf
    if not groups:
        return 0.0
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = groups
    with np.errstate(divide="ignore"):  # log(1 - sample_rate) at sample_rate 1
        return float(accountant.get_epsilon(delta, eps_error=error))


# --- What noise a plan needs ----------------------------------------------------------------------


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    rounds: int = 1,
) -> float:
    """The smallest noise multiplier with which `rounds` times `steps` Poisson steps stay within
    `epsilon` at `delta`. On top of what was spent: `adaptive.noise_multiplier_on_top`.

    Rounded up, at most PRECISION above the true value. 0.0 for an infinite epsilon (train without
    noise and call the event "none"). Raises BudgetError when no noise is enough, ValueError for an
    epsilon, rounds or steps that are not positive.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: found {epsilon!r}; allowed: above 0")
    if rounds < 1:
        raise ValueError(f"rounds: found {rounds!r}; allowed: at least 1")
    if math.isinf(epsilon):
        return 0.0
    Event.poisson_gaussian(1.0, sample_rate, steps)  # raises for a bad sample rate or steps

    def fits(cells: int) -> Callable[[float], bool]:
        def check(sigma: float) -> bool:
            plan = Event.poisson_gaussian(sigma, sample_rate, steps * rounds)
            return _compose([plan], delta, cells) <= epsilon

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
            f"budget {epsilon:g} at delta {delta:g}: {rounds} x {steps} steps at sample rate"
            f" {sample_rate:.4g} do not fit it with any noise multiplier up to {LARGEST_NOISE:g};"
            " allowed: fewer steps, a smaller sample rate, or a larger budget"
        )
    return sigma


def smallest(
    fits: Callable[[float], bool], low: float, high: float, start: float, ratio: float
) -> float | None:
    """The smallest value in [low, high] that `fits` (monotone), within PRECISION; None when `high`
    does not.

    Walks from `start` in steps that square each time (`ratio`, `ratio`^2, ...), then bisects the
    logarithm.
    """
    if fits(start):
        upper, lower = start, start
        while upper > low:
            lower = max(low, upper / ratio)
            if not fits(lower):
                break
            upper, ratio = lower, ratio**2
        else:
            return upper
    else:
        lower, upper = start, start
        while True:
            if lower >= high:
                return None
            upper = min(high, lower * ratio)
            if fits(upper):
                break
            lower, ratio = upper, ratio**2
    while upper / lower > 1 + PRECISION / 2:
        middle = math.sqrt(lower * upper)
        lower, upper = (lower, middle) if fits(middle) else (middle, upper)
    rounded = _round_up(upper)
    return rounded if rounded == upper or fits(rounded) else upper


def _round_up(value: float) -> float:
    """`value` rounded up to 5 significant digits, so that ledgers and receipts are readable and
    equal plans are equal events.
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 4)
    return float(f"{math.ceil(value / unit) * unit:.10g}")


# --- Privacy loss distributions -------------------------------------------------------------------


def _groups(events: Iterable[Event]) -> tuple[_Group, ...] | None:
    """Equal Poisson mechanisms in order of appearance, then all Gaussians as one of sample rate 1,
    then all zCDP as one; None when an event is "none".
    """
    steps: dict[tuple[float, float], int] = {}
    precision = 0.0  # sum of 1 / sigma^2 of the plain Gaussians
    rho = 0.0
    for event in events:
        if event.kind == "none":
            return None
        if event.kind == "zcdp":
            rho += event.rho
        elif event.kind == "gaussian" or event.sample_rate == 1.0:
            precision += event.steps * event.count / event.noise_multiplier**2
        else:
            key = (event.noise_multiplier, event.sample_rate)
            steps[key] = steps.get(key, 0) + event.steps
    groups = [(sigma, rate, number) for (sigma, rate), number in steps.items()]
    if precision:
        groups.append((1 / math.sqrt(precision), 1.0, 1))
    if rho:
        groups.append((rho, 0.0, 1))
    return tuple(groups)


def _history(events: Iterable[Event], delta: float) -> list[_Group] | None:
    _check_delta(delta)
    groups = _groups(events)
    return None if groups is None else list(groups)


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: found {delta!r}; allowed: above 0, below 1")


def _compose(events: Iterable[Event], delta: float, cells: int) -> float:
    _check_delta(delta)
    groups = _groups(events)
    return math.inf if groups is None else _epsilon(groups, delta, cells)


@lru_cache(maxsize=4096)
def _epsilon(groups: tuple[_Group, ...], delta: float, cells: int) -> float:
    if not groups:
        return 0.0
    if len(groups) == 1 and groups[0][1] == 1.0:
        # Balle and Wang 2018, Theorem 8
        return smallest_epsilon(GaussianPrivacyLoss(groups[0][0]).get_delta_for_epsilon, delta)
    if len(groups) == 1 and groups[0][1] == 0.0:
        return zcdp.epsilon_of(groups[0][0], delta)
    interval = _interval(groups, cells)
    # fills the cache from the front, so that no call below recurses deeply
    for end in range(1, len(groups)):
        _distribution(groups[:end], interval)
    composed = _distribution(groups, interval)
    with np.errstate(over="ignore"):
        epsilon = float(composed.get_epsilon_for_delta(delta))
    if epsilon < 500:
        return epsilon
    # above 700 the other way underflows: exp(-epsilon)
    return smallest_epsilon(composed.get_delta_for_epsilon, delta)


def smallest_epsilon(delta_at: Callable[[float], float], delta: float) -> float:
    """The smallest epsilon whose delta is at most `delta`, rounded up by at most 1e-9 of itself;
    infinite beyond 1e12."""
    if delta_at(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_at(high) > delta:
        low, high = high, 2 * high
        if high > 1e12:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def distribution_of(event: Event, cells: int = CELLS) -> pld.PrivacyLossDistribution:
    """The privacy loss distribution of one event that is not "none", rounded against us."""
    groups = _groups([event]) or ()
    return _distribution(groups, _interval(groups, cells))


@lru_cache(maxsize=128)
def _distribution(groups: tuple[_Group, ...], interval: float) -> pld.PrivacyLossDistribution:
    """The composed distribution. The last group is added to the cached rest: a ledger grows at its
    end, a plan varies its last group.
    """
    if len(groups) > 1:
        return _distribution(groups[:-1], interval).compose(_distribution(groups[-1:], interval))
    sigma, rate, steps = groups[0]
    if rate == 0.0:
        return pld.PrivacyLossDistribution(
            pld_pmf.create_pmf_pessimistic_connect_dots(interval, *zcdp.profile(sigma, interval))
        )
    one = pld.from_gaussian_mechanism(
        sigma, sampling_prob=rate, value_discretization_interval=interval, pessimistic_estimate=True
    )
    return one.self_compose(steps) if steps > 1 else one


def _interval(groups: Sequence[_Group], cells: int) -> float:
    """INTERVAL times the power of two that spreads the composed privacy loss over about `cells`
    cells [O].

    Any interval is sound. Powers of two nest the grids, and the width grows with every step and
    falls with noise, so that rounding never makes more noise or fewer steps look dearer.
    """
    # a zCDP mechanism is about as wide as the Gaussian of its rho
    groups = [
        (sigma, rate, n) if rate else ((2 * sigma) ** -0.5, 1.0, n) for sigma, rate, n in groups
    ]
    single = max(1 / (2 * sigma**2) + 10 / sigma for sigma, _, _ in groups)
    mean, variance = 0.0, 0.0
    for sigma, rate, steps in groups:
        chi = rate**2 * math.expm1(min(1 / sigma**2, 500.0))
        mean += steps * min(rate / (2 * sigma**2), math.log1p(chi))
        variance += steps * min(rate * (1 / (4 * sigma**4) + 1 / sigma**2), chi)
    width = single + mean + 10 * math.sqrt(variance)
    return INTERVAL * 2.0 ** min(12, max(-7, math.ceil(math.log2(width / (INTERVAL * cells)))))
