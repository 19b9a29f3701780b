"""Zero-concentrated DP (Bun and Steinke 2016): what a rho means in epsilon and delta, and which
privacy profile no mechanism of that rho exceeds.

A mechanism is rho-zCDP when the Renyi divergence of order alpha between its outputs on neighbours
is at most rho alpha, for every alpha > 1 and in both directions. Rhos add, also when later
mechanisms are chosen by what earlier ones showed.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

_SMALLEST, _LARGEST = -12.0, 12.0  # log(alpha - 1) that is searched


def epsilon_of(rho: float, delta: float) -> float:
    """The smallest epsilon that rho-zCDP alone implies at `delta`.

    Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), Proposition 12, for Renyi divergences
    rho alpha: the infimum over alpha > 1 of rho alpha + (log(1 / delta) + (alpha - 1) log(1 - 1 /
    alpha) - log alpha) / (alpha - 1). Any alpha gives a bound; the best is searched. Raises
    ValueError for a rho below 0 or a delta outside (0, 1).
    """
    _check(rho)
    if not 0 < delta < 1:
        raise ValueError(f"delta: found {delta!r}; allowed: above 0, below 1")
    if rho == 0:
        return 0.0

    def bound(log_order: float) -> float:
        above = math.exp(log_order)  # alpha - 1
        order = 1 + above
        rest = -math.log(delta) - math.log(order)
        return rho * order + rest / above + math.log1p(-1 / order)

    found = minimize_scalar(
        bound, bounds=(_SMALLEST, _LARGEST), method="bounded", options={"xatol": 1e-10}
    )
    return max(0.0, float(found.fun))


def rho_for(epsilon: float, delta: float) -> float:
    """The largest rho whose epsilon at `delta` is at most `epsilon`, rounded down by at most 1e-9
    of itself; infinite for an infinite epsilon. Raises ValueError for an epsilon that is not above
    0."""
    if not epsilon > 0:
        raise ValueError(f"epsilon: found {epsilon!r}; allowed: above 0")
    if math.isinf(epsilon):
        return math.inf
    low, high = 0.0, epsilon  # rho-zCDP has epsilon >= rho at any delta of interest
    while epsilon_of(high, delta) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= epsilon else (low, middle)
    return low


def deltas_of(rho: float, epsilons: np.ndarray) -> np.ndarray:
    """[n] upper bounds of the hockey-stick divergences of order e^epsilon, for `epsilons` [n] of
    any sign, that hold for every rho-zCDP mechanism.

    For epsilon >= 0 the infimum over orders of exp((alpha - 1)(rho alpha - epsilon)) (1 - 1 /
    alpha)^alpha / (alpha - 1) (as above), and sqrt(rho / 2), since the total variation is at most
    that (Pinsker). Below 0 by what a pair and its reverse have in common, delta(-epsilon) = 1 -
    e^-epsilon + e^-epsilon delta(epsilon).
    """
    _check(rho)
    positive = np.abs(np.asarray(epsilons, dtype=np.float64))
    if rho == 0:
        best = np.zeros_like(positive)
    else:
        above = np.exp(np.linspace(_SMALLEST, _LARGEST, 601))
        fixed = (1 + above) * np.log1p(-1 / (1 + above)) - np.log(above)
        logs = np.full_like(positive, 0.5 * math.log(rho / 2))
        for start in range(0, len(positive), 4096):
            part = slice(start, start + 4096)
            grid = above * (rho * (1 + above)) + fixed
            logs[part] = np.minimum(logs[part], (grid - above * positive[part, None]).min(axis=1))
        best = np.exp(np.minimum(logs, 0.0))
    shrunk = np.exp(-positive)
    return np.where(np.asarray(epsilons) >= 0, best, 1 - shrunk + shrunk * best)


def profile(rho: float, interval: float) -> tuple[np.ndarray, np.ndarray]:
    """(whole multiples of `interval`, deltas there): a privacy profile that dominates every
    rho-zCDP mechanism, ready to be composed with others.

    The largest of their profiles is convex in e^epsilon and nowhere above `deltas_of`; so it is
    nowhere above the convex hull from below of these either, which is what is returned, on a grid
    that ends where delta has fallen under 1e-16. A Gaussian of the same rho would not do: it does
    not dominate the others.
    """
    _check(rho)
    # (epsilon - rho)^2 / (4 rho) is what delta falls by
    end = rho + 2 * math.sqrt(rho * 37.0) + interval
    steps = np.arange(-math.ceil(end / interval), math.ceil(end / interval) + 1)
    epsilons = steps * interval
    return steps, _hull(np.exp(np.clip(epsilons, -700, 700)), deltas_of(rho, epsilons))


def _hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The largest convex function on `x` (ascending) that is nowhere above `y`, at `x`."""
    kept = np.arange(len(x))
    while True:  # a run of points at which slopes fall lies above the line between its ends
        above = np.flatnonzero(np.diff(np.diff(y[kept]) / np.diff(x[kept])) < 0) + 1
        if not len(above):
            break
        kept = np.delete(kept, above)
    return np.minimum(np.interp(x, x[kept], y[kept]), y)


def _check(rho: float) -> None:
    if not (0 <= rho < math.inf):
        raise ValueError(f"rho: found {rho!r}; allowed: a finite number of 0 or more")
