"""How a DP generator is trained, a section of the configuration; imports no torch."""

from __future__ import annotations

from typing import Literal

import pydantic
from fedduet.conf.check import Section


class DPConfig(Section):
    """How a generator is trained. Clip 1.0 and the constant learning rate follow Yue et al. (ACL
    2023); other defaults are ours [O]."""

    tuning: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter or all weights (full)."""
    rank: int = pydantic.Field(default=8, ge=1)
    """Of the LoRA adapter."""
    alpha: float = pydantic.Field(default=16.0, gt=0)
    """LoRA; the update is scaled by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """LoRA: "all-linear" or module names."""
    learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    """Constant, of AdamW on the noised gradient."""
    epochs: float = pydantic.Field(default=10.0, gt=0)
    """Expected passes over the private texts."""
    steps: int | None = pydantic.Field(default=None, ge=1)
    """Overrides epochs."""
    logical_batch: int = pydantic.Field(default=16, ge=1)
    """Expected units a step; the sample rate is logical_batch / n, at most 1."""
    micro_batch: int = pydantic.Field(default=16, ge=1)
    """Rows in memory at a time; does not change the result."""
    records_per_user: int = pydantic.Field(default=4, ge=1)
    """Where users are the unit: of a drawn user's records, so many at most a step."""
    max_tokens: int = pydantic.Field(default=128, ge=2)
    """Of control code + text + EOS."""
    clip: float = pydantic.Field(default=1.0, gt=0)
    """C, L2 over all trainable parameters of one unit's gradient."""
    mask_control_code: bool = False
    """true: the control code's own tokens carry no loss."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Of forward and backward, where int8 is auto, and of sampling; gradients are summed in
    float32."""
    engine: Literal["book_keeping", "vmap", "hooks"] = "book_keeping"
    """How gradients are clipped; changes the result by rounding only."""
