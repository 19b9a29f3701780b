"""Baseline: FedAvg (McMahan et al. 2017) of the SLMs' shared weights, LoRA or full. Weights leave
without a formal guarantee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fedduet.strategies.run.moves import Moves
from fedduet.wire.codec import Arrays
from fedduet.wire.messages import Learn


def fedavg(moves: Moves, rounds: int, part: float) -> None:
    """Every round all sites do `part` of a local training from the average; the last average is
    measured at every site."""
    average: Arrays = {}
    for round in range(rounds):
        average = moves.run.once_arrays(
            f"fedavg-{round}", lambda round=round, start=average: _round(moves, round, part, start)
        )
    # only loads the average at every site, so that it can be measured
    moves.teach(
        "fedavg",
        lambda site: _request(moves, site, rounds, private=False, share_weights=False),
        arrays=average,
    )
    moves.measure("fedavg")


def _round(moves: Moves, round: int, part: float, average: Arrays) -> Arrays:
    phase = f"learn-fedavg-{round}"
    answers = moves.ask(
        phase,
        lambda site: _request(moves, site, round, part=part, share_weights=True),
        arrays=average,
    )
    return weighted_mean(
        [arrays for _, arrays in answers.values()],
        [learned.private_units for learned, _ in answers.values()],
    )


def _request(moves: Moves, site: str, round: int, **options: Any) -> Learn:
    return Learn(
        moves.message_id(f"learn-fedavg-{round}", site),
        moves.sites.run_id,
        "fedavg",
        seed=moves.seed,
        **options,
    )


def weighted_mean(parts: Sequence[Arrays], rows: Sequence[int]) -> Arrays:
    """Mean of each array over `parts`, weighted by `rows`; float64 sums, the arrays' own dtype
    back."""
    share = np.asarray(rows, dtype=np.float64) / np.sum(rows)
    return {
        name: (
            sum(
                w * part[name].astype(np.float64) for w, part in zip(share, parts, strict=True)
            ).astype(parts[0][name].dtype)
        )
        for name in parts[0]
    }
