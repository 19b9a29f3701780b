"""FDKT and then CrossLM in one run: the second starts from the first's SLMs and demonstrations."""

from __future__ import annotations

from fedduet.strategies.config import FDKTCrossLMConfig
from fedduet.strategies.crosslm import crosslm
from fedduet.strategies.fdkt import fdkt
from fedduet.strategies.run.moves import Moves


def fdkt_crosslm(moves: Moves, config: FDKTCrossLMConfig) -> None:
    """FDKT's SLM scores CrossLM's first round, and what its judge kept of the demonstrations is
    shown to the LLM as examples.

    Where scores are protected, FDKT plans within `fdkt_part` of the run's epsilon, and the scores
    with what is left of the whole.
    """
    whole = moves.epsilon
    if moves.feedback != "none":
        moves.epsilon = config.fdkt_part * whole
    demonstrations = fdkt(moves, config.fdkt)
    moves.epsilon, moves.weight, moves.order = whole, config.crosslm.weight, config.crosslm.order
    crosslm(moves, config.crosslm, scorer="fdkt", demonstrations=demonstrations)
