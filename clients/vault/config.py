"""What a site is set up with: its data, models, budget and policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
from fedduet.clients.vault.answering.config import AnswersConfig
from fedduet.clients.vault.release.policy import Policy
from fedduet.clients.vault.release.privacy_unit import check_unit
from fedduet.conf.check import Section, check
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.data.questions import AnyTask

ScorerEmbedding = Literal["auto", "slm", "words"]


class PredictionConfig(Section):
    """How texts are written by private prediction (`fedduet.lm.dp.private_prediction`). Defaults
    are ours [O]."""

    rule: Literal["clipped", "argmax"] = "clipped"
    # B; null: n / (labels x batches), n the public number of units
    contexts: int | None = pydantic.Field(None, ge=1)
    batches: int = pydantic.Field(1, ge=1)
    tokens: int = pydantic.Field(32, ge=1)  # of a text; what is paid for
    temperature: float = pydantic.Field(1.0, gt=0)
    top_k: int = pydantic.Field(500, ge=1)
    examples: int = pydantic.Field(3, ge=0)  # that the public LM writes for its own prompt
    # begins every prompt; {noun}, {domain} and {label} are filled
    heading: str = "Examples of {noun}s ({domain}, {label}):"
    prompt_tokens: int = pydantic.Field(160, ge=8)  # longer lists are cut at their end
    rows: int = pydantic.Field(64, ge=1)  # contexts read side by side; does not change the result


class GeneratorConfig(DPConfig):
    """What writes demonstrations: a public LM that is trained (see DPConfig) and sampled (METHODS,
    FDKT step 2), or that reads private contexts (see PredictionConfig)."""

    method: Literal["dpsgd", "private_prediction", "auto"] = "dpsgd"
    # auto: private prediction for a site whose declared, public size is at most this
    auto_threshold: int = pydantic.Field(200, ge=1)
    declared_size: int | None = pydantic.Field(None, ge=1)
    prediction: PredictionConfig = PredictionConfig()
    path: str = pydantic.Field(min_length=1)
    temperature: float = pydantic.Field(1.0, gt=0)
    top_k: int = pydantic.Field(50, ge=0)
    top_p: float = pydantic.Field(0.9, gt=0, le=1)
    max_new_tokens: int = pydantic.Field(96, ge=1)
    minimum_tokens: int = pydantic.Field(5, ge=1)  # shorter samples are dropped [O]
    # times the missing number is sampled again before fewer are released [O]
    attempts: int = pydantic.Field(4, ge=1)
    sample_batch: int = pydantic.Field(64, ge=1)
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps

    @property
    def predicts(self) -> bool:
        """Whether texts come by private prediction: a matter of public numbers alone. How many
        records a site really has decides nothing."""
        if self.method == "auto":
            return self.declared_size is not None and self.declared_size <= self.auto_threshold
        return self.method == "private_prediction"


class PrivacyConfig(Section):
    """What a run asks for (`epsilon`, `delta`) and, for simulated sites, the policy they answer
    with.

    `counterfactual_baselines`: simulated sites take part in FedAvg although its weights carry no
    guarantee; what that would have released is written to a ledger of its own, since nothing left a
    real site. `feedback`: how scores of generated texts are protected; `scorer_embedding`: by what
    public embedding protected scores compare texts (clients/vault/feedback.py).
    """

    epsilon: float
    delta: float | None = None
    policy: Policy = Policy()
    seeded_noise: bool = False
    counterfactual_baselines: bool = True
    feedback: Literal["none", "votes", "gaussian"] = "none"
    scorer_embedding: ScorerEmbedding = "auto"

    @pydantic.field_validator("epsilon")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not value > 0:
            raise ValueError(
                f"found {value}; allowed: above 0 (inf needs policy.allow_unprotected)"
            )
        return value

    @pydantic.field_validator("delta")
    @classmethod
    def _probability(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                f"found {value}; allowed: above 0, below 1, or null for the site's own"
            )
        return value


@dataclass(frozen=True)
class SiteConfig:
    """One site. `folder` holds its ledger, releases and models; `pooled` marks the simulation's
    upper bound with everybody's records."""

    client: str
    folder: Path
    task: AnyTask
    slm: SLMConfig
    generator: GeneratorConfig | None  # None: of a site with questions
    policy: Policy
    seed: int
    seeded_noise: bool = False
    scorer_embedding: ScorerEmbedding = "auto"
    counterfactual_baselines: bool = False
    pooled: bool = False
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    # a simulation's: where the pooled bound's models are, to be measured at every site
    pooled_folder: Path | None = None
    simulated: bool = False  # nobody's server asks: counts and times are free, trainings repeatable

    def __post_init__(self) -> None:
        check_unit(self.policy, self.task)

    @property
    def repeatable(self) -> bool:
        """Whether trainings draw from the server's seed and rows keep their own lengths: in a
        simulation, and where the site gave its noise a seed, which protects nothing any more."""
        return self.simulated or self.seeded_noise


def site_settings(config: Mapping[str, Any]) -> tuple[SLMConfig, GeneratorConfig, PrivacyConfig]:
    """The sections of a run's configuration that concern sites. Raises ConfigError."""
    # what the run asks for comes first in complaints
    check(PrivacyConfig, dict(config["privacy"]) | {"policy": {}}, "privacy")
    checked = check(PrivacyConfig, config["privacy"], "privacy")
    return (
        check(SLMConfig, config["slm"], "slm"),
        check(GeneratorConfig, config["generator"], "generator"),
        checked,
    )
