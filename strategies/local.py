"""Baseline: every site trains on its own records alone."""

from fedduet.strategies.run.moves import Moves


def local(moves: Moves) -> None:
    """Nothing leaves, nothing comes."""
    moves.learn("local")
