"""A strategy in one file: sites learn from each other's DP-synthetic texts, first as released, then
as an LLM goes on from them."""

from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.texts import merge, shared_by_all


def strategy(moves: Moves, settings: dict) -> None:
    """`per_label`: demonstrations of each label that every site releases, in one round that spends
    the run's whole epsilon."""
    moves.learn("local")  # the baseline that reports compare with: a site's own records

    demonstrations = moves.synthesize(round=0, rounds=1, per_label=settings.get("per_label", 16))
    moves.learn("neighbours", shared_by_all(demonstrations))  # everybody's, for everybody

    written = moves.augment("augment-0", moves.curate(0, demonstrations))
    # what the strategy ends with
    moves.learn("custom", shared_by_all(merge(demonstrations, written)))
