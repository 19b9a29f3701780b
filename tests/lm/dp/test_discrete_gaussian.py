"""Whole-number noise: the distribution it claims, exactly drawn, and as private as the Gaussian."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from fedduet.lm.dp import discrete_gaussian as module
from fedduet.lm.dp.accounting import Event, compose
from fedduet.lm.dp.discrete_gaussian import discrete_gaussian, variance_for
from fedduet.lm.randomness import SecureNoise, SeededNoise
from scipy import stats


def probabilities(variance: float, most: int) -> np.ndarray:
    values = np.arange(-most, most + 1)
    weights = np.exp(-(values**2) / (2 * variance))
    return weights / weights.sum()


@pytest.mark.parametrize("variance", [1, 3, 40])
def test_draws_have_the_stated_probabilities(variance):
    drawn = discrete_gaussian(20_000, variance, SeededNoise(0, variance))
    most = math.ceil(3 * math.sqrt(variance))
    expected = probabilities(variance, 10 * most)[9 * most : 11 * most + 1] * len(drawn)
    found = np.array([(drawn == value).sum() for value in range(-most, most + 1)])
    assert (
        stats.chisquare(
            [*found, len(drawn) - found.sum()], [*expected, len(drawn) - expected.sum()]
        ).pvalue
        > 1e-4
    )
    secure = discrete_gaussian(4000, variance, SecureNoise())
    exact = (probabilities(variance, 10 * most) * np.arange(-10 * most, 10 * most + 1) ** 2).sum()
    assert secure.dtype == np.int64 and abs(secure.mean()) < 5 * math.sqrt(exact / 4000)
    assert abs(secure.var() / exact - 1) < 5 * math.sqrt(2 / 4000)


class Scripted:
    """A source that counts in the smallest possible steps through all its numbers."""

    def __init__(self, numbers):
        self.numbers, self.asked = iter(numbers), []

    def integer(self, below):
        self.asked.append(below)
        return next(self.numbers)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 3), (1, 1), (2, 3), (5, 2), (7, 1)])
def test_a_coin_of_an_exponential_is_exact(numerator, denominator):
    """Every branch of the coin, by its exact probability, up to the depth where what is left is
    below 1e-9."""

    def chance(numbers: list[int], weight: Fraction) -> tuple[Fraction, Fraction]:
        source = Scripted(numbers)
        try:
            return (weight if module._exp(numerator, denominator, source) else Fraction(0)), weight
        except StopIteration:
            below = source.asked[len(numbers)]
            # a coin asks only whether the number is below a threshold, so ends of runs stand for all
            threshold = numerator if below % denominator == 0 and numerator <= denominator else 1
            parts = [(0, min(threshold, below)), (min(threshold, below), below)]
            true = known = Fraction(0)
            for start, end in parts:
                share = weight * Fraction(end - start, below)
                if share > Fraction(1, 10**6):
                    one, other = chance([*numbers, start], share)
                    true, known = true + one, known + other
            return true, known

    if numerator <= denominator:
        true, known = chance([], Fraction(1))
        exact = math.exp(-numerator / denominator)
        assert known > 0.99999 and float(true) <= exact + 1e-9 <= float(true + 1 - known) + 2e-9
    else:
        drawn = [module._exp(numerator, denominator, SeededNoise(0, i)) for i in range(3000)]
        exact = math.exp(-numerator / denominator)
        assert abs(np.mean(drawn) - exact) < 5 * math.sqrt(exact / 3000)


@pytest.mark.parametrize("sensitivity", [200, 1000])
def test_its_privacy_is_that_of_the_gaussian_it_stands_for(sensitivity):
    """The hockey-stick divergence of two discrete Gaussians that are `sensitivity` apart, summed
    up, is at most delta at the Gaussian's epsilon, and not far below."""
    sigma, delta = 0.9, 1e-5
    variance = variance_for(sigma * sensitivity)
    assert variance >= (sigma * sensitivity) ** 2 + module.SMOOTHING**2
    values = np.arange(-20 * sensitivity, 21 * sensitivity + 1)
    log_one, log_two = (-((values - at) ** 2) / (2 * variance) for at in (0, sensitivity))
    log_sum = np.log(np.exp(log_one).sum())
    epsilon = compose([Event.gaussian(sigma)], delta)
    for first, second in ((log_one, log_two), (log_two, log_one)):
        gap = np.exp(first - log_sum) - np.exp(epsilon + second - log_sum)
        assert 0.8 * delta < np.maximum(gap, 0).sum() <= delta * (1 + 1e-9)


def test_whole_numbers_of_any_size_are_uniform():
    for source in (SecureNoise(), SecureNoise(bytes(32)), SeededNoise(0)):
        drawn = [source.integer(5) for _ in range(5000)]
        assert stats.chisquare(np.bincount(drawn, minlength=5)).pvalue > 1e-5
        large = [source.integer(3 * 2**70) for _ in range(300)]
        assert 2**71 < max(large) < 3 * 2**70 and min(large) >= 0
        assert {source.integer(1) for _ in range(5)} == {0}
        assert {source.integer(256) > 127 for _ in range(60)} == {True, False}
