"""The strategy section of the configuration, one class for each strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic
from fedduet.conf.check import Section


class Baselines(Section):
    """What every strategy's section has: baselines of the same run, on unless switched off by name,
    and FedAvg's settings."""

    KNOWN: ClassVar[tuple[str, ...]] = ()
    fedavg_rounds: int = pydantic.Field(3, ge=1)
    fedavg_part: float = pydantic.Field(1.0, gt=0, le=1)  # of a local training in each round [O]
    baselines: Mapping[str, bool] = {}

    @pydantic.field_validator("baselines")
    @classmethod
    def _known(cls, value: Mapping[str, bool]) -> Mapping[str, bool]:
        unknown = sorted(set(value) - set(cls.KNOWN))
        if unknown:
            raise ValueError(
                f"unknown baseline {', '.join(unknown)}; allowed: {', '.join(cls.KNOWN)}"
            )
        return value

    def wants(self, baseline: str) -> bool:
        """Whether a baseline runs; those not mentioned do."""
        return self.baselines.get(baseline, True)


class FDKTConfig(Baselines):
    """FDKT and its baselines. `curate` and `augment` are the server's settings and checked
    there."""

    KNOWN = ("local", "dp_only", "zero_shot", "fedavg", "pooled")
    name: Literal["fdkt"]
    rounds: int = pydantic.Field(1, ge=1)
    demonstrations_per_label: int = pydantic.Field(32, ge=1)
    # what a site receives: data of its own domain, or everybody's
    share: Literal["domain", "all"] = "domain"
    # lambda of L = CE(D_i) + lambda * CE(D_a,i); METHODS: our choice
    weight: float = pydantic.Field(1.0, ge=0)
    order: Literal["together", "generated_first"] = "together"
    curate: Mapping[str, Any] = {}
    augment: Mapping[str, Any] = {}


class CrossLMConfig(Baselines):
    """CrossLM and its baselines. `write`, `policy`, `examples` and `general` are the server's
    settings and checked there."""

    KNOWN = ("zero_shot", "filtered", "llm_unfiltered", "llm_pooled", "fedavg", "pooled")
    name: Literal["crosslm"]
    rounds: int = pydantic.Field(3, ge=1)
    # texts of each label for each site's domain in a round
    per_label: int = pydantic.Field(24, ge=1)
    share: Literal["domain", "all"] = "all"
    weight: float = pydantic.Field(1.0, ge=0)  # lambda of L = CE(D_k) + lambda * sum r * CE
    order: Literal["together", "generated_first"] = "together"
    aggregate: Literal["uniform", "rows", "median"] = "uniform"
    # tau: the least reward of an accepted text; null: that of no opinion [O]
    accept: float | None = pydantic.Field(None, ge=0, le=1)
    # texts of a label, the best ones, where fewer are accepted
    keep_at_least: int = pydantic.Field(4, ge=1)
    # none: selection only
    tuning: Literal["policy_gradient", "dpo", "likelihood", "none"] = "policy_gradient"
    adapters: Literal["separate", "shared"] = "separate"  # of generating and of the task
    # of each site's test texts, to measure the LLM in a simulation
    llm_test_rows: int = pydantic.Field(200, ge=1)
    write: Mapping[str, Any] = {}
    policy: Mapping[str, Any] = {}
    examples: Mapping[str, Any] = {}
    general: Mapping[str, Any] = {}


class GBoostConfig(Section):
    """G-Boost and what it is compared with. `search`: clients/vault/answering/search.py
    `SearchConfig`, checked at the sites and before a run."""

    name: Literal["gboost"]
    # strategies/gboost.py SEARCHES, clients/vault/answering/baselines.py BASELINES
    methods: tuple[str, ...]
    # solutions that a Best-of-N or a vote may draw within the budget
    samples: int = pydantic.Field(16, ge=1)
    questions: int | None = pydantic.Field(None, ge=1)  # test questions of each site; null: all
    search: Mapping[str, Any] = {}


class FDKTCrossLMConfig(Section):
    """FDKT, then CrossLM from its SLMs and demonstrations."""

    name: Literal["fdkt_crosslm"]
    # of epsilon for demonstrations, the rest for scores, where these are protected [O]
    fdkt_part: float = pydantic.Field(0.7, gt=0, lt=1)
    fdkt: FDKTConfig
    crosslm: CrossLMConfig

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
    def weight(self) -> float:
        """Of the first part."""
        return self.fdkt.weight

    @property
    def order(self) -> str:
        """Of the first part."""
        return self.fdkt.order


class CustomConfig(Section):
    """A strategy of the user's own. `file` is read where the ServerApp runs; `settings` go to its
    function as they are."""

    name: Literal["custom"]
    file: str
    settings: Mapping[str, Any] = {}
    weight: float = pydantic.Field(1.0, ge=0)
    order: Literal["together", "generated_first"] = "together"
    curate: Mapping[str, Any] = {}
    augment: Mapping[str, Any] = {}
