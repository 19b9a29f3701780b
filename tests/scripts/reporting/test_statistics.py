"""Intervals cover a simulated truth as often as they say; tests and adjustments are those of the
books."""

import math

import numpy as np
import pytest
from fedduet.scripts.reporting import statistics
from fedduet.scripts.reporting.statistics import Interval
from scipy import stats

TRUTH = 4.0  # points of "a" above "b"


def run(seed, sites):
    """A summary in which site number i has these accuracies by method."""
    return {
        "seed": seed,
        "accuracy_per_client": {f"site{i}": accuracy for i, accuracy in enumerate(sites)},
    }


def simulated(random, seeds, sites=4):
    """Runs in which all sites of a seed share a deviation (one pooled model, one set of LLM texts)
    of 4 points, and have 2 points of their own."""
    found = []
    for seed in range(seeds):
        shared = random.normal(0, 4.0)
        apart = TRUTH + shared + random.normal(0, 2.0, sites)
        found.append(run(seed, [{"a": 0.7 + one / 100, "b": 0.7} for one in apart]))
    return found


def pairs_interval(summaries):
    """The interval that is not to be used: every (site, seed) as if it were independent."""
    pairs = [
        100 * (site["a"] - site["b"])
        for summary in summaries
        for site in summary["accuracy_per_client"].values()
    ]
    half = stats.t.ppf(0.975, len(pairs) - 1) * np.std(pairs, ddof=1) / math.sqrt(len(pairs))
    return np.mean(pairs) - half, np.mean(pairs) + half


@pytest.mark.parametrize("seeds", [3, 10])
def test_an_interval_from_seeds_covers_the_truth_and_one_over_dependent_pairs_does_not(seeds):
    random = np.random.default_rng(0)
    by_seeds = by_pairs = 0
    for _ in range(1000):
        summaries = simulated(random, seeds)
        points = statistics.contrast(summaries, "a", "b").points
        by_seeds += points.low <= TRUTH <= points.high
        low, high = pairs_interval(summaries)
        by_pairs += low <= TRUTH <= high
    assert 0.93 <= by_seeds / 1000 <= 0.97  # standard error .007
    assert by_pairs / 1000 < 0.8


def test_a_contrast_is_a_paired_t_test_of_seed_means():
    sites = [([0.7, 0.8], [0.6, 0.6]), ([0.7, 0.6], [0.6, 0.6]), ([0.9, 0.9], [0.7, 0.8])]
    summaries = [
        run(seed, [{"a": x, "b": y} for x, y in zip(a, b, strict=True)])
        for seed, (a, b) in enumerate(sites)
    ]
    found = statistics.contrast(summaries, "a", "b")
    assert statistics.differences(summaries, "a", "b") == pytest.approx({0: 15, 1: 5, 2: 15})
    assert found.points.mean == pytest.approx(35 / 3) and found.seeds == 3
    # t(.975, 2) = 4.3027 times 5.7735 / sqrt(3)
    assert found.points.high - found.points.mean == pytest.approx(4.3027 * 10 / 3, rel=1e-4)
    assert found.p == pytest.approx(stats.ttest_1samp([15, 5, 15], 0).pvalue)
    assert found.verdict == "cannot be told"
    other = statistics.contrast(summaries, "b", "a")
    assert other.points.mean == -found.points.mean and other.p == found.p
    assert statistics.contrast(summaries, "a", "c") is None


def test_runs_of_one_seed_are_one_value_and_have_no_interval():
    summaries = [run(0, [{"a": 0.8, "b": 0.6}]), run(0, [{"a": 0.9, "b": 0.6}])]
    found = statistics.contrast(summaries, "a", "b")
    assert (found.seeds, found.verdict) == (1, "one seed")
    assert found.points.mean == pytest.approx(25) and math.isnan(found.points.low)
    assert found.points.said("+.1f") == "+25.0"
    assert Interval(1, 0.5, 1.5).said(".2f") == "1.00 [0.50, 1.50]"


def test_equivalence_is_the_larger_of_two_one_sided_tests():
    values = [0.3, -0.2, 0.5, 0.1]
    one_sided = [
        stats.ttest_1samp(values, -1, alternative="greater").pvalue,
        stats.ttest_1samp(values, 1, alternative="less").pvalue,
    ]
    assert statistics.equivalence(values, 1) == pytest.approx(max(one_sided))
    assert max(one_sided) < 0.05
    assert statistics.equivalence([5.0, 5.1, 4.9], 2) > 0.99  # far away is not equal
    assert statistics.equivalence([-9.0, 9.0, 1.0], 2) > 0.3  # nor is what cannot be told
    assert math.isnan(statistics.equivalence([0.0], 2))


def test_holm_multiplies_by_the_number_still_open_and_never_falls():
    assert statistics.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan], nan_ok=True
    )
    assert statistics.holm([0.9, 0.5]) == [1.0, 1.0]


def test_a_bootstrap_resamples_seeds_first():
    """Two seeds that differ, four sites that do not: all of the spread is of seeds, so that a draw
    of two seeds has three possible means."""
    outcomes = {seed: {site: np.array([[float(seed)]]) for site in "wxyz"} for seed in (0, 1)}
    drawn = statistics.resampled(outcomes, draws=2000)[:, 0]
    assert set(drawn) == {0.0, 0.5, 1.0} and np.mean(drawn == 0.5) == pytest.approx(0.5, abs=0.05)


def test_a_bootstrap_draws_test_rows_where_there_are_any():
    """One seed, one site: the spread is that of a mean of 100 coins, .05."""
    rows = np.array([[1.0], [0.0]] * 50)
    drawn = statistics.resampled({0: {"x": rows}}, draws=4000)[:, 0]
    assert drawn.std() == pytest.approx(0.05, rel=0.1) and drawn.mean() == pytest.approx(
        0.5, abs=0.01
    )


def test_the_closed_gap_has_an_interval_or_is_not_there():
    def seeds(pooled, fdkt=0.7):
        return [
            run(seed, [{"local": 0.6, "m": fdkt + 0.01 * seed, "pooled": pooled[seed]}] * 2)
            for seed in range(3)
        ]

    found = statistics.gap_closed(seeds([0.8, 0.8, 0.8]), "m")
    assert found.mean == pytest.approx(0.55) and found.low == pytest.approx(0.5)
    assert found.high == pytest.approx(0.6)
    assert statistics.gap_closed(seeds([0.8, 0.8, 0.8])[:2], "m") is None  # two seeds
    assert statistics.gap_closed(seeds([0.7, 0.62, 0.4]), "m") is None  # the gap may be none
