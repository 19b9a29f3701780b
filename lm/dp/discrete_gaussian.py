"""Whole-number noise N_Z(0, sigma^2), drawn exactly; why a Gaussian's privacy bound holds for it.

Floating-point normals have low bits that may tell of what they were added to (Mironov 2012). Here
sums are whole numbers, noise is drawn by integer arithmetic alone, and nothing is rounded.

P(N = z) is proportional to exp(-z^2 / (2 sigma^2)) on the integers. Sampler: Canonne, Kamath and
Steinke 2020 (arXiv 2004.00010), Algorithms 1 to 3.

Why N_Z with variance s^2 + r^2, r = SMOOTHING, is as private as the Gaussian N(0, s^2): draw
y = x + N(0, s^2) for a whole x, then a whole z with weight exp(-(z - y)^2 / (2 r^2)). The second
is post-processing. Its output z has weight exp(-(z - x)^2 / (2 (s^2 + r^2))) times a mean of
1 / rho(y), where rho(y) = sum_z exp(-(z - y)^2 / (2 r^2)) is, by Poisson summation,
r sqrt(2 pi) (1 +- 2.1 exp(-2 pi^2 r^2)). So each probability differs from that of N_Z by a factor
of 1 +- 1e-800: nothing that an epsilon of any number of releases could show.
"""

from __future__ import annotations

import math

import numpy as np
from fedduet.lm.randomness import NoiseSource

SMOOTHING = 10  # r [O]: adds 100 to a variance of 1e8 and more here


def discrete_gaussian(count: int, variance: int, randomness: NoiseSource) -> np.ndarray:
    """[count] int64 independent draws of N_Z(0, `variance`), a whole number of at least 1."""
    return np.array([_draw(variance, randomness) for _ in range(count)], dtype=np.int64)


def variance_for(deviation: float) -> int:
    """The variance with which N_Z is as private as the Gaussian of this standard deviation."""
    return math.ceil(deviation * deviation) + SMOOTHING * SMOOTHING


def _draw(variance: int, randomness: NoiseSource) -> int:
    """Algorithm 3: a discrete Laplace number of scale t, kept with probability
    exp(-(|y| - variance / t)^2 / (2 variance))."""
    scale = math.isqrt(variance) + 1
    while True:
        drawn = _laplace(scale, randomness)
        off = abs(drawn) * scale - variance
        if _exp(off * off, 2 * variance * scale * scale, randomness):
            return drawn


def _laplace(scale: int, randomness: NoiseSource) -> int:
    """Algorithm 2: P(y) proportional to exp(-|y| / scale)."""
    while True:
        low = randomness.integer(scale)
        if not _exp(low, scale, randomness):
            continue
        whole = 0
        while _exp(1, 1, randomness):
            whole += 1
        size, negative = low + scale * whole, randomness.integer(2)
        if size or not negative:
            return -size if negative else size


def _exp(numerator: int, denominator: int, randomness: NoiseSource) -> bool:
    """Algorithm 1: true with probability exp(-numerator / denominator)."""
    while numerator > denominator:
        if not _exp(1, 1, randomness):
            return False
        numerator -= denominator
    turn = 1
    while randomness.integer(denominator * turn) < numerator:
        turn += 1
    return turn % 2 == 1
