"""Baseline: the LLM writes from the domain's name alone (the "ZeroGen" case), the same amount as
for FDKT."""

from fedduet.strategies.run.moves import Moves


def zero_shot(moves: Moves) -> None:
    """What the LLM knows without having seen anything from the sites; costs no privacy."""
    moves.learn("zero_shot", moves.augment("augment-zero_shot", None))
