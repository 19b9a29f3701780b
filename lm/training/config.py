"""Sections of the configuration about training, and what a tuning says of itself; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pydantic
from fedduet.conf.check import Section


class PolicyConfig(Section):
    """How the generator learns from scores. All values are our choice [O]."""

    objective: Literal["policy_gradient", "dpo", "likelihood"] = "policy_gradient"
    learning_rate: float = pydantic.Field(5e-4, gt=0)
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

    learning_rate: float = pydantic.Field(5e-4, gt=0)
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


# validation rows that a checkpoint may be chosen by: the standard error of an accuracy of .8 is 4
# points with 100 [O]
VALIDATES = 100


class SLMConfig(Section):
    """The small model of a site and how it is trained; conf/slm/*.yaml say how their values were
    chosen."""

    path: str  # folder or hub name of an encoder or causal LM
    method: Literal["full", "lora"] = "full"
    # what is trained, and leaves, when weights are shared (FedAvg)
    share: Literal["full", "lora"] = "full"
    rank: int = pydantic.Field(default=16, ge=1)  # LoRA
    alpha: float = pydantic.Field(default=32.0, gt=0)  # LoRA
    # highest, after the warm-up; falls linearly to 0
    learning_rate: float = pydantic.Field(default=1e-4, gt=0)
    # the head, new and random, learns this many times faster
    head_factor: float = pydantic.Field(default=10.0, gt=0)
    # passes over the private rows, the same for every method, see planned_training_steps
    epochs: float = pydantic.Field(default=10.0, gt=0)
    min_steps: int = pydantic.Field(default=120, ge=0)
    max_steps: int = pydantic.Field(default=2000, ge=1)
    # private rows a step; where there are generated texts, as many of them beside
    batch_size: int = pydantic.Field(default=8, ge=1)
    max_tokens: int = pydantic.Field(default=96, ge=4)
    warmup: float = pydantic.Field(default=0.1, ge=0, le=1)  # share of the steps
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # the last checkpoint, or the one with the highest validation accuracy, which takes VALIDATES
    # validation rows at least
    select: Literal["last", "accuracy"] = "last"
    # how often validation accuracy is measured, evenly spaced, for "accuracy"
    evaluations: int = pydantic.Field(default=6, ge=1)


class RewardConfig(Section):
    """Which reward model, and in which form it wants solutions.

    `steps`: a token classifier of two classes, read at the last token of each step, as TRL's
    PRMTrainer and `fedduet-train-reward` make them. `likelihood`: the least likely token of the
    steps under a causal LM, turned into a probability by what `fedduet-train-reward` fitted to
    labelled steps (`likelihood.json` beside the weights): for models too small to learn a head [O].
    `qwen`:
    Qwen2.5-Math-PRM (Zhang et al. 2025): "<extra_0>" after each step, a head of two layers.
    `math_shepherd` (Wang et al. 2024): a causal LM that says `good` or `bad` at the `tag` after
    each step.
    """

    path: str
    form: Literal["steps", "likelihood", "qwen", "math_shepherd"] = "steps"
    tag: str = "ки"
    good: str = "+"
    bad: str = "-"
    batch_size: int = pydantic.Field(64, ge=1)
    max_tokens: int = pydantic.Field(1024, ge=8)
