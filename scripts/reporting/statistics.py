"""What several runs say together: intervals from seeds, contrasts of two methods, and the share of
a gap that is closed.

Sites of one run share its pooled model, its LLM texts and its draws, so that pairs of site and seed
are not independent: an interval over them is far too narrow. Here a seed counts once, with its mean
over sites; one seed has no interval. One sign everywhere: a difference is the method's accuracy
minus the other's, in points, so that above 0 the method is better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fedduet.strategies.run.summary import ordered, told

LEVEL = 0.95
MARGIN = 2.0  # points within which two methods count as equal [O]
DRAWS = 4000  # of a bootstrap [O]
FEWEST = 3  # seeds that a bootstrap resamples [O]
SIGN = "Differences are the method minus the other, in points: above 0 the method is better."
ONE_SEED = "One seed: there is no interval over methods. Give several runs, one for each seed."

# seed -> site -> [rows, k]: outcomes of k methods for each test row, or one row of accuracies
Outcomes = Mapping[int, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the ends are nan where one value gives none."""

    mean: float
    low: float
    high: float

    def said(self, form: str) -> str:
        """`mean [low, high]` in a number format, without ends that there are not."""
        ends = "" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.mean:{form}}{ends}"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How far `method` is above `against`, in points, over `seeds` seeds.

    `p`: two-sided, of a paired t test over seeds, Holm-adjusted where the contrast is one of
    several exploratory ones; `p_equal`: of the equivalence test (TOST) with MARGIN. Both nan for
    one seed.
    """

    method: str
    against: str
    seeds: int
    points: Interval
    p: float
    p_equal: float

    @property
    def verdict(self) -> str:
        """In words: better, worse, equal within the margin, or that it cannot be told."""
        if math.isnan(self.p):
            return "one seed"
        if self.p < 1 - LEVEL:
            return "better" if self.points.mean > 0 else "worse"
        return f"equal within {MARGIN:g}" if self.p_equal < 1 - LEVEL else "cannot be told"


# -- Over seeds ------------------------------------------------------------------------------------


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and 95 % Student t interval of one value for each seed."""
    mean = float(np.mean(values))
    half = _standard_error(values) * _quantile(len(values), (1 + LEVEL) / 2)
    return Interval(mean, mean - half, mean + half)


def by_seed(summaries: Sequence[Mapping[str, Any]], method: str) -> dict[int, float]:
    """Accuracy of a method by seed: the mean over sites, of several runs with one seed their
    mean."""
    return _seed_means(summaries, lambda site: [site[method]] if method in site else [])


def differences(
    summaries: Sequence[Mapping[str, Any]], method: str, against: str
) -> dict[int, float]:
    """Points of `method` above `against` by seed, over the sites that have both."""
    return _seed_means(
        summaries,
        lambda site: (
            [100 * (site[method] - site[against])] if {method, against} <= site.keys() else []
        ),
    )


def contrast(summaries: Sequence[Mapping[str, Any]], method: str, against: str) -> Contrast | None:
    """`method` against `against`; None where no run has both."""
    values = list(differences(summaries, method, against).values())
    if not values:
        return None
    return Contrast(
        method=method,
        against=against,
        seeds=len(values),
        points=over_seeds(values),
        p=_two_sided(values),
        p_equal=equivalence(values, MARGIN),
    )


def equivalence(values: Sequence[float], margin: float) -> float:
    """p of two one-sided t tests (Schuirmann 1987) that the mean of one value a seed lies within
    +-`margin`; nan for fewer than two."""
    from scipy import stats  # a second's import, which pages that show no interval spare

    if len(values) < 2:
        return math.nan
    error, mean = _standard_error(values), float(np.mean(values))
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0

    return float(stats.t.sf((margin - abs(mean)) / error, len(values) - 1))


def exploratory(found: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts with p adjusted for their number (Holm 1979)."""
    adjusted = holm([one.p for one in found])
    return [Contrast(**(vars(one) | {"p": p})) for one, p in zip(found, adjusted, strict=True)]


def contrasts(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, Contrast]]:
    """("primary", each that the strategy names beforehand), then ("exploratory", the final method
    against every other one measured), adjusted together."""
    spec = told(summaries[0])
    named = [tuple(pair) for pair in spec["contrasts"]]
    rest = [
        (spec["final"], other)
        for other in ordered({one for s in summaries for one in s["accuracy"]}, summaries[0])
        if other != spec["final"] and (spec["final"], other) not in named
    ]
    primary, others = (
        [one for pair in pairs if (one := contrast(summaries, *pair))] for pairs in (named, rest)
    )
    return [("primary", one) for one in primary] + [
        ("exploratory", one) for one in exploratory(others)
    ]


def contrast_lines(summaries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """`contrasts` as a table: head and rows as text."""
    lines = [["contrast", "kind", "points [95 % over seeds]", "p", "verdict"]]
    for kind, one in contrasts(summaries):
        p = "" if math.isnan(one.p) else f"{one.p:.3f}"
        points = one.points.said("+.1f")
        lines.append([f"{one.method} - {one.against}", kind, points, p, one.verdict])
    return lines


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values, in their order; nan (nothing tested) stays and does not count."""
    known = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted, highest = list(p), 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * value))
        adjusted[place] = highest
    return adjusted


# -- Hierarchical bootstrap ------------------------------------------------------------------------


def resampled(outcomes: Outcomes, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """[draws, k] means of k methods: seeds are drawn with replacement, in each its sites, in each
    its test rows (where there are several), and means taken the other way round."""
    random = np.random.default_rng(seed)
    seeds = list(outcomes.values())
    found = []
    for _ in range(draws):
        means = []
        for one in random.integers(len(seeds), size=len(seeds)):
            sites = list(seeds[one].values())
            chosen = [sites[place] for place in random.integers(len(sites), size=len(sites))]
            means.append(
                np.mean(
                    [rows[random.integers(len(rows), size=len(rows))].mean(0) for rows in chosen], 0
                )
                if any(len(rows) > 1 for rows in chosen)
                else np.mean([rows[0] for rows in chosen], axis=0)
            )
        found.append(np.mean(means, axis=0))
    return np.array(found)


def outcomes_of(
    summaries: Sequence[Mapping[str, Any]], methods: Sequence[str]
) -> dict[int, dict[str, np.ndarray]]:
    """Accuracies of the methods by seed and site, of sites that have all. Sites keep the outcomes
    of single test rows to themselves, so that each has one row."""
    found: dict[int, dict[str, np.ndarray]] = defaultdict(dict)
    for summary in summaries:
        for site, accuracy in summary["accuracy_per_client"].items():
            if set(methods) <= accuracy.keys():
                found[summary["seed"]][site] = np.array([[accuracy[one] for one in methods]])
    return dict(found)


def gap_closed(
    summaries: Sequence[Mapping[str, Any]],
    method: str,
    lower: str = "local",
    upper: str = "pooled",
) -> Interval | None:
    """(method - lower) / (upper - lower) of the means, with a 95 % interval by bootstrap over seeds
    and sites.

    None, so that nothing is printed, for fewer than FEWEST seeds, and where the gap is not surely
    above 0: then the share has no meaning.
    """
    outcomes = outcomes_of(summaries, (method, lower, upper))
    if len(outcomes) < FEWEST:
        return None
    drawn = resampled(outcomes)
    gaps = drawn[:, 2] - drawn[:, 1]
    if np.mean(gaps > 1e-9) < (1 + LEVEL) / 2:
        return None
    shares = (drawn[:, 0] - drawn[:, 1]) / np.where(gaps > 1e-9, gaps, np.nan)
    mean = np.mean(
        [np.mean([rows[0] for rows in sites.values()], 0) for sites in outcomes.values()], 0
    )
    low, high = np.nanquantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float((mean[0] - mean[1]) / (mean[2] - mean[1])), float(low), float(high))


# -- Pieces ----------------------------------------------------------------------------------------


def _seed_means(
    summaries: Sequence[Mapping[str, Any]],
    of_site: Callable[[Mapping[str, float]], list[float]],
) -> dict[int, float]:
    runs: dict[int, list[float]] = defaultdict(list)
    for summary in summaries:
        values = [v for site in summary["accuracy_per_client"].values() for v in of_site(site)]
        if values:
            runs[summary["seed"]].append(float(np.mean(values)))
    return {seed: float(np.mean(values)) for seed, values in sorted(runs.items())}


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _quantile(count: int, at: float) -> float:
    from scipy import stats  # a second's import, which pages that show no interval spare

    return float(stats.t.ppf(at, count - 1)) if count > 1 else math.nan


def _two_sided(values: Sequence[float]) -> float:
    from scipy import stats  # a second's import, which pages that show no interval spare

    if len(values) < 2:
        return math.nan
    error, mean = _standard_error(values), float(np.mean(values))
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))
