"""Baseline: every site adds its own DP-synthetic texts, without the LLM."""

from fedduet.strategies.run.moves import Moves, Texts


def dp_only(moves: Moves, demonstrations: Texts) -> None:
    """The demonstrations as released, before any judge."""
    moves.learn("dp_only", demonstrations)
