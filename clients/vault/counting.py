"""Test counts with a guarantee: how many of a site's units a public model is right about, plus
noise (docs/privacy.md).

A unit is a record, or a user, who counts by the share of their records that are right: so one more
or less moves the sum by at most 1. That holds for a model that saw no private record. One that did
may be right about another test record for every training record, so the count's sensitivity would
be its whole range: no noise of use protects that, and such counts are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedduet.clients.vault import feedback
from fedduet.lm.dp.accounting import BudgetError
from fedduet.lm.dp.dpsgd import rows_of_units
from fedduet.lm.randomness import NoiseSource

LARGEST_NOISE = 0.25  # [O] of the number of units; with a larger deviation a count says nothing


def right_by_unit(right: np.ndarray, owners: Sequence[int]) -> float:
    """The sum over units of the share of each one's rows that are right ([n] bool): sensitivity 1
    to a unit."""
    return float(sum(right[rows].mean() for rows in rows_of_units(owners)))


def check_noise(sigma: float, units: int) -> None:
    """Raises BudgetError where noise of deviation `sigma` would hide the count of `units`."""
    if sigma > LARGEST_NOISE * units:
        raise BudgetError(
            f"a count of {units} with noise of deviation {sigma:.3g} says nothing; allowed: at most"
            f" {LARGEST_NOISE:g} of the units; ask with a larger epsilon or fewer rounds"
        )


def noisy_count(count: float, units: int, sigma: float, randomness: NoiseSource) -> int:
    """`count` + N(0, sigma^2) as a whole number within 0 and `units`, which is post-processing."""
    drawn = feedback.noisy(np.array([count]), sigma, randomness)
    return int(np.clip(np.rint(drawn[0]), 0, units))
