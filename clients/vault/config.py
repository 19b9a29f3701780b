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
from fedduet.conf.check import Problems, Section, check
from fedduet.conf.sections import AskedPrivacy, FederationConfig, read_asked, read_common
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.data.questions import AnyTask, check_task

ScorerEmbedding = Literal["auto", "slm", "words"]


class PredictionConfig(Section):
    """How texts are written by private prediction (`fedduet.lm.dp.private_prediction`). Defaults
    are ours [O]."""

    rule: Literal["clipped", "argmax"] = "clipped"
    """How contexts' predictions become one token: clipped logits that are averaged, or a noisy
    argmax."""
    contexts: int | None = pydantic.Field(None, ge=1)
    """B; null: n / (labels x batches), n the public number of units."""
    batches: int = pydantic.Field(1, ge=1)
    """Disjoint sets of contexts for each label."""
    tokens: int = pydantic.Field(32, ge=1)
    """Of a text; what is paid for."""
    temperature: float = pydantic.Field(1.0, gt=0)
    """Of sampling; 0 is greedy."""
    top_k: int = pydantic.Field(500, ge=1)
    """Of sampling: among so many likeliest tokens; 0 is off."""
    examples: int = pydantic.Field(3, ge=0)
    """That the public LM writes for its own prompt."""
    heading: str = "Examples of {noun}s ({domain}, {label}):"
    """Begins every prompt; {noun}, {domain} and {label} are filled."""
    prompt_tokens: int = pydantic.Field(160, ge=8)
    """Longer lists are cut at their end."""
    rows: int = pydantic.Field(64, ge=1)
    """Contexts read side by side; does not change the result."""


class GeneratorConfig(DPConfig):
    """What writes demonstrations: a public LM that is trained (see DPConfig) and sampled (METHODS,
    FDKT step 2), or that reads private contexts (see PredictionConfig)."""

    method: Literal["dpsgd", "private_prediction", "auto"] = "dpsgd"
    """DP-SGD on a public LM, private prediction by one, or auto: the latter for small sites."""
    auto_threshold: int = pydantic.Field(200, ge=1)
    """auto: private prediction for a site whose declared, public size is at most this."""
    declared_size: int | None = pydantic.Field(None, ge=1)
    """The public number of a site's units, by which auto decides."""
    prediction: PredictionConfig = PredictionConfig()
    """How private prediction writes."""
    path: str = pydantic.Field(min_length=1)
    """The generator's public start: folder or hub name of a causal LM."""
    temperature: float = pydantic.Field(1.0, gt=0)
    """Of sampling; 0 is greedy."""
    top_k: int = pydantic.Field(50, ge=0)
    """Of sampling: among so many likeliest tokens; 0 is off."""
    top_p: float = pydantic.Field(0.9, gt=0, le=1)
    """Of sampling: the least set of tokens with this much probability."""
    max_new_tokens: int = pydantic.Field(96, ge=1)
    """The most tokens of one text."""
    minimum_tokens: int = pydantic.Field(5, ge=1)
    """Shorter samples are dropped [O]."""
    attempts: int = pydantic.Field(4, ge=1)
    """Times the missing number is sampled again before fewer are released [O]."""
    sample_batch: int = pydantic.Field(64, ge=1)
    """Texts sampled at once."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    @property
    def predicts(self) -> bool:
        """Whether texts come by private prediction: a matter of public numbers alone. How many
        records a site really has decides nothing."""
        if self.method == "auto":
            return self.declared_size is not None and self.declared_size <= self.auto_threshold
        return self.method == "private_prediction"


class PrivacyConfig(AskedPrivacy):
    """What a run asks for and, for simulated sites, the policy they answer with."""

    policy: Policy = pydantic.Field(
        Policy(), description="What a simulated site agrees to; a real site has its own."
    )
    seeded_noise: bool = pydantic.Field(
        False, description="Reproducible DP noise, for tests only: the run is not private then."
    )
    counterfactual_baselines: bool = pydantic.Field(
        True,
        description=(
            "Simulated sites take part in baselines that a real site would refuse, such as FedAvg,"
            " with a ledger of their own for these: nothing left a real site."
        ),
    )
    scorer_embedding: ScorerEmbedding = pydantic.Field(
        "auto",
        description=(
            "What protected scores compare texts by: slm (its public start), words (hashed), auto:"
            " words for a built-in SLM."
        ),
    )


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


@dataclass(frozen=True, kw_only=True)
class SitesPart:
    """The part of a run's configuration that concerns simulated sites, typed once. `folder`: the
    run's; None: not chosen yet."""

    seed: int
    folder: Path | None
    federation: FederationConfig
    task: AnyTask
    slm: SLMConfig
    generator: GeneratorConfig
    privacy: PrivacyConfig
    answers: AnswersConfig

    @property
    def state_folder(self) -> Path:
        """Where the sites keep ledgers and models."""
        return Path(self.federation.state_folder or (self.folder or Path("runs/none")) / "sites")


def read_sites(config: Mapping[str, Any], problems: Problems | None = None) -> SitesPart:
    """The sites' part of a run's configuration. Raises ConfigError with all that is wrong; where
    `problems` are collected by the caller, who ends them, the part may lack what is wrong."""
    found = Problems() if problems is None else problems
    top, run, federation = read_common(config, found)
    # what the run asks for comes first in complaints: the policy repeats its epsilon
    asked = found.of(read_asked, config["privacy"])
    parts: dict[str, Any] = {  # None: what is wrong with it is among the problems
        "seed": top and top.seed,
        "folder": Path(run.folder) if run and run.folder else None,
        "federation": federation,
        "task": found.of(check_task, config["task"]),
        "slm": found.of(check, SLMConfig, config["slm"], "slm"),
        "generator": found.of(check, GeneratorConfig, config["generator"], "generator"),
        "privacy": asked and found.of(check, PrivacyConfig, config["privacy"], "privacy"),
        "answers": found.of(check, AnswersConfig, config["answers"], "answers"),
    }
    if problems is None:
        found.end()
    return SitesPart(**parts)
