"""FDKT and then CrossLM in one run: the second starts from the first's SLMs and demonstrations."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pydantic
from fedduet.conf.check import Section
from fedduet.strategies.baselines import columns
from fedduet.strategies.crosslm import METHODS, CrossLMConfig, crosslm
from fedduet.strategies.fdkt import MEANING, FDKTConfig, fdkt
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.spec import Needs, Spec


class FDKTCrossLMConfig(Section):
    """FDKT, then CrossLM from its SLMs and demonstrations."""

    name: Literal["fdkt_crosslm"]
    """This strategy."""
    fdkt_part: float = pydantic.Field(0.7, gt=0, lt=1)
    """Of epsilon for demonstrations, the rest for scores, where these are protected [O]."""
    fdkt: FDKTConfig
    """The settings of FDKT."""
    crosslm: CrossLMConfig
    """The settings of CrossLM."""

    @pydantic.model_validator(mode="after")
    def _baselines_once(self) -> FDKTCrossLMConfig:
        both = [
            name
            for name in FDKTConfig.KNOWN
            if name in CrossLMConfig.KNOWN and self.fdkt.wants(name) and self.crosslm.wants(name)
        ]
        if both:
            raise ValueError(
                f"baselines of both: {', '.join(both)}; switch them off in one, e.g."
                f" crosslm.baselines.{both[0]}=false"
            )
        return self

    @property
    def rounds(self) -> int:
        """Of the second part, whose rounds the run's figures are told by."""
        return self.crosslm.rounds


def fdkt_crosslm(moves: Moves, config: FDKTCrossLMConfig) -> None:
    """FDKT's SLM scores CrossLM's first round, and what its judge kept of the demonstrations is
    shown to the LLM as examples.

    Where scores are protected, FDKT plans within `fdkt_part` of the run's epsilon, and the scores
    with what is left of the whole.
    """
    part = 1.0 if moves.feedback == "none" else config.fdkt_part
    demonstrations = fdkt(replace(moves, epsilon=part * moves.epsilon), config.fdkt)
    crosslm(moves, config.crosslm, scorer="fdkt", demonstrations=demonstrations)


SPEC = Spec(
    name="fdkt_crosslm",
    config=FDKTCrossLMConfig,
    run=fdkt_crosslm,
    needs=lambda config: Needs(("fdkt", config.fdkt), ("crosslm", config.crosslm)),
    final="crosslm",
    taught=("fdkt", "crosslm"),
    question="Do private SLMs get better by FDKT and then CrossLM, under one privacy budget?",
    contrasts=(("crosslm", "fdkt"), ("crosslm", "zero_shot")),
    columns=columns(FDKTConfig.KNOWN, {"fdkt": MEANING, **METHODS}),
)
