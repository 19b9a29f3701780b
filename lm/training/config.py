"""Sections of the configuration about training, and what a tuning says of itself; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pydantic
from fedduet.conf.check import Section


class PolicyConfig(Section):
    """How the generator learns from scores. All values are our choice [O]."""

    objective: Literal["policy_gradient", "dpo", "likelihood"] = "policy_gradient"
    """What makes well-rated texts likelier: policy_gradient, dpo (pairs of a label), or
    likelihood."""
    learning_rate: float = pydantic.Field(5e-4, gt=0)
    """Of AdamW."""
    epochs: int = pydantic.Field(4, ge=1)
    """Passes over the texts."""
    batch_size: int = pydantic.Field(32, ge=1)
    """Texts a step."""
    rank: int = pydantic.Field(16, ge=1)
    """Of the LoRA adapter."""
    alpha: float = pydantic.Field(32.0, gt=0)
    """Of the LoRA adapter; its update is scaled by alpha / rank."""
    clip: float = pydantic.Field(0.2, gt=0)
    """Of the ratio new / old policy, as in PPO."""
    kl_weight: float = pydantic.Field(0.05, ge=0)
    """Of the leash in the loss."""
    keep_weight: float = pydantic.Field(1.0, ge=0)
    """Of the KL to the base on kept texts."""
    kl_limit: float = pydantic.Field(0.5, gt=0)
    """Nats a token from the base; above it the round is undone."""
    dpo_beta: float = pydantic.Field(0.1, gt=0)
    """Of DPO: how far the LLM may go from its base."""
    threshold: float = pydantic.Field(0.5, ge=0, le=1)
    """likelihood: texts rated at least so much are learnt."""


class ExamplesConfig(Section):
    """How the task is learnt. All values are our choice [O]."""

    learning_rate: float = pydantic.Field(5e-4, gt=0)
    """Of AdamW."""
    epochs: int = pydantic.Field(4, ge=1)
    """Passes over the texts."""
    batch_size: int = pydantic.Field(16, ge=1)
    """Texts a step."""
    rank: int = pydantic.Field(16, ge=1)
    """Of the LoRA adapter."""
    alpha: float = pydantic.Field(32.0, gt=0)
    """Of the LoRA adapter; its update is scaled by alpha / rank."""
    keep_weight: float = pydantic.Field(15.0, ge=0)
    """Of the KL to the base on kept texts."""
    kl_limit: float = pydantic.Field(0.5, gt=0)
    """Nats a token from the base on kept texts; above it the tuning is undone."""


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

    path: str
    """Folder or hub name of an encoder or causal LM."""
    method: Literal["full", "lora"] = "full"
    """Train all weights (full) or a LoRA adapter."""
    share: Literal["full", "lora"] = "full"
    """What is trained, and leaves, when weights are shared (FedAvg)."""
    rank: int = pydantic.Field(default=16, ge=1)
    """Of a LoRA adapter."""
    alpha: float = pydantic.Field(default=32.0, gt=0)
    """Of a LoRA adapter; its update is scaled by alpha / rank."""
    learning_rate: float = pydantic.Field(default=1e-4, gt=0)
    """Highest, after the warm-up; falls linearly to 0."""
    head_factor: float = pydantic.Field(default=10.0, gt=0)
    """The head, new and random, learns this many times faster."""
    epochs: float = pydantic.Field(default=10.0, gt=0)
    """Passes over the private rows, the same for every method, see planned_training_steps."""
    min_steps: int = pydantic.Field(default=120, ge=0)
    """The fewest steps of a training, however few rows there are."""
    max_steps: int = pydantic.Field(default=2000, ge=1)
    """The most steps of a training."""
    batch_size: int = pydantic.Field(default=8, ge=1)
    """Private rows a step; where there are generated texts, as many of them beside."""
    max_tokens: int = pydantic.Field(default=96, ge=4)
    """Longer texts are cut."""
    warmup: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Share of the steps."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    """Of AdamW."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is bf16 where the hardware multiplies in it, and fp32 elsewhere."""
    select: Literal["last", "accuracy"] = "last"
    """The last checkpoint, or the one with the highest validation accuracy, which takes
    VALIDATES validation rows at least."""
    evaluations: int = pydantic.Field(default=6, ge=1)
    """How often validation accuracy is measured, evenly spaced, for "accuracy"."""


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
    """Folder or hub name of a model."""
    form: Literal["steps", "likelihood", "qwen", "math_shepherd"] = "steps"
    """How the model wants solutions and says its rewards: steps, likelihood, qwen or
    math_shepherd."""
    tag: str = "ки"
    """math_shepherd: what stands after each step."""
    good: str = "+"
    """math_shepherd: the word for a right step."""
    bad: str = "-"
    """math_shepherd: the word for a wrong step."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Solutions read at once."""
    max_tokens: int = pydantic.Field(1024, ge=8)
    """Longer solutions are cut at their beginning."""
