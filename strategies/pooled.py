"""Baseline, upper bound: one SLM trained on all sites' private records together. Only a simulation
can do that."""

from fedduet.strategies.run.moves import Moves
from fedduet.wire.messages import Learn


def pooled(moves: Moves) -> None:
    """Trained once, at the first site's worker, and measured on every site's test split."""
    first = moves.sites.names[:1]

    def request(site: str) -> Learn:
        return Learn(
            moves.message_id("learn-pooled", site),
            moves.sites.run_id,
            "pooled",
            scope="pooled",
            seed=moves.seed,
        )

    moves.teach("pooled", request, only=first)
    moves.measure("pooled", scope="pooled")
