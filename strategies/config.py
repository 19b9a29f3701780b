"""The strategy section of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from conf.check import Section

BASELINES = ("local", "dp_only", "zero_shot", "fedavg", "pooled")


class FDKTConfig(Section):
    """FDKT and its baselines. `curate` and `augment` are the server's settings and checked there."""

    name: Literal["fdkt"]
    rounds: int = pydantic.Field(1, ge=1)
    demonstrations_per_label: int = pydantic.Field(32, ge=1)
    share: Literal["domain", "all"] = "domain"  # what a site receives: data of its own domain, or everybody's
    weight: float = pydantic.Field(1.0, ge=0)  # lambda of L = CE(D_i) + lambda * CE(D_a,i); METHODS: our choice
    order: Literal["together", "generated_first"] = "together"
    fedavg_rounds: int = pydantic.Field(3, ge=1)
    fedavg_part: float = pydantic.Field(1.0, gt=0, le=1)  # of a local training in each round [O]
    baselines: Mapping[str, bool] = {}
    curate: Mapping[str, Any] = {}
    augment: Mapping[str, Any] = {}

    @pydantic.field_validator("baselines")
    @classmethod
    def _known(cls, value: Mapping[str, bool]) -> Mapping[str, bool]:
        unknown = sorted(set(value) - set(BASELINES))
        if unknown:
            raise ValueError(f"unknown baseline {', '.join(unknown)}; allowed: {', '.join(BASELINES)}")
        return value

    def wants(self, baseline: str) -> bool:
        """Whether a baseline runs; those not mentioned do."""
        return self.baselines.get(baseline, True)
