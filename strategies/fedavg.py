"""Baseline: FedAvg (McMahan et al. 2017) of the SLMs' shared weights, LoRA or full. Weights leave without a formal guarantee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.base import Moves
from wire.codec import Arrays
from wire.messages import Learn


def fedavg(moves: Moves, rounds: int, part: float) -> None:
    """Every round all sites do `part` of a local training from the average; the last average is measured at every site."""
    average: Arrays = {}
    for round in range(rounds + 1):
        phase = f"learn-fedavg-{round}"
        last = round == rounds  # only loads the average at every site, so that it can be measured

        def request(site: str, phase: str = phase, last: bool = last) -> Learn:
            return Learn(
                moves.message_id(phase, site),
                moves.sites.run_id,
                "fedavg",
                private=not last,
                part=part,
                share_weights=not last,
                seed=moves.seed,
            )

        answers = moves.ask(phase, request, arrays=average)
        if not last:
            average = weighted_mean([arrays for _, arrays in answers.values()], [learned.private_rows for learned, _ in answers.values()])
    moves.measure("fedavg")


def weighted_mean(parts: Sequence[Arrays], rows: Sequence[int]) -> Arrays:
    """Mean of each array over `parts`, weighted by `rows`; float64 sums, the arrays' own dtype back."""
    share = np.asarray(rows, dtype=np.float64) / np.sum(rows)
    return {
        name: sum(w * part[name].astype(np.float64) for w, part in zip(share, parts, strict=True)).astype(parts[0][name].dtype)
        for name in parts[0]
    }
