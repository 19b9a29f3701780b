"""How a LoRA adapter is tuned, and what a tuning says of itself; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pydantic
from fedduet.conf.check import Section


class PolicyConfig(Section):
    """How the generator learns from scores. All values are our choice [O]."""

    objective: Literal["policy_gradient", "dpo", "likelihood"] = "policy_gradient"
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    epochs: int = pydantic.Field(4, ge=1)
    batch_size: int = pydantic.Field(32, ge=1)
    rank: int = pydantic.Field(16, ge=1)
    alpha: float = pydantic.Field(32.0, gt=0)
    clip: float = pydantic.Field(0.2, gt=0)  # of the ratio new / old policy, as in PPO
    kl_weight: float = pydantic.Field(0.05, ge=0)  # of the leash in the loss
    keep_weight: float = pydantic.Field(1.0, ge=0)  # of the KL to the base on kept texts
    # nats a token from the base; above it the round is undone
    kl_limit: float = pydantic.Field(0.5, gt=0)
    dpo_beta: float = pydantic.Field(0.1, gt=0)
    # likelihood: texts rated at least so much are learnt
    threshold: float = pydantic.Field(0.5, ge=0, le=1)


class ExamplesConfig(Section):
    """How the task is learnt. All values are our choice [O]."""

    learning_rate: float = pydantic.Field(2e-3, gt=0)
    epochs: int = pydantic.Field(4, ge=1)
    batch_size: int = pydantic.Field(16, ge=1)
    rank: int = pydantic.Field(16, ge=1)
    alpha: float = pydantic.Field(32.0, gt=0)
    keep_weight: float = pydantic.Field(15.0, ge=0)  # of the KL to the base on kept texts
    # nats a token from the base on kept texts; above it the tuning is undone
    kl_limit: float = pydantic.Field(0.5, gt=0)


@dataclass(frozen=True)
class TuneReport:
    """What a tuning did. `stopped`: "" (ran), "no_signal" (nothing to learn from, nothing changed)
    or "kl" (undone).

    `kl`: nats a token between the tuned LLM and its base (on the rated texts, or on the kept ones;
    NaN without any).
    """

    steps: int
    loss: float
    kl: float
    stopped: str = ""
