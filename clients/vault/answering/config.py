"""What a site answers questions with, and which methods there are: sections of the configuration
that import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pydantic
from fedduet.clients.vault.answering.tree import PathScore
from fedduet.conf.check import Section, nearest
from fedduet.lm.training.config import RewardConfig

PRIVATE, COLLABORATIVE = "private", "collaborative"


class SearchConfig(Section):
    """All values are our choice [O]; the paper gives none.

    `fusion`: how the collaborative mode draws a token: "proxy", softmax(z_L + alpha * (z_M+ -
    z_M-)), or "average", the mean of the logits of the LLM and the private SLM. `modes`: which
    modes write the children of a node: `children` of each, or twice as many of one, or each by the
    toss of a coin. The budgets are for one question: `iterations` (leaves expanded), `steps` (steps
    written), `llm_token_budget` (tokens that the LLM takes part in drawing), `seconds` (wall time
    of the call); None is no limit. `parallel`:
    leaves expanded in one round.
    `widen`: when every path is at its end and budget is left, the nodes of the best one get further
    children, until that brings none. `solution_tokens`: the longest whole solution of a baseline;
    of a search the depth is limited, to `max_steps`.
    """

    alpha: float = 1.0
    """Weight of the private SLM's difference from its base in fused logits."""
    fusion: Literal["proxy", "average"] = "proxy"
    """proxy: softmax(z_L + alpha * (z_M+ - z_M-)); average: the mean of LLM's and SLM's
    logits."""
    exploration: float = pydantic.Field(0.2, ge=0)
    """c of UCT."""
    children: int = pydantic.Field(2, ge=1)
    """New steps of each mode at a leaf."""
    iterations: int = pydantic.Field(64, ge=1)
    """Leaves that may be expanded for a question."""
    step_tokens: int = pydantic.Field(128, ge=1)
    """The most tokens of a step."""
    max_steps: int = pydantic.Field(12, ge=1)
    """The most steps of a path."""
    solution_tokens: int = pydantic.Field(512, ge=1)
    """The most tokens of a baseline's whole solution."""
    temperature: float = pydantic.Field(0.7, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: float = pydantic.Field(1.0, gt=0, le=1)
    """Of sampling: the least set of tokens with this much probability."""
    path_score: PathScore = "min"
    """A path's score of its steps' rewards: last, min, mean or product."""
    answer: Literal["best", "vote"] = "best"
    """The best finished path's, or a vote weighed by reward."""
    llm_token_budget: int | None = pydantic.Field(None, ge=0)
    """Tokens of a question that the LLM may take part in drawing; null: no limit."""
    steps: int | None = pydantic.Field(None, ge=1)
    """Steps that may be written for a question; null: no limit."""
    seconds: float | None = pydantic.Field(None, gt=0)
    """Wall time of a call; null: no limit."""
    parallel: int = pydantic.Field(4, ge=1)
    """Leaves expanded in one round."""
    modes: Literal["both", "private", "collaborative", "random"] = "both"
    """Which modes write a leaf's children; random: the toss of a coin for each."""
    widen: bool = True
    """Whether the best path gets further children when all paths are at their end."""


@dataclass(frozen=True)
class Baseline:
    """Solutions by one writer. `choose`: "only" takes the one there is (greedy, unless `sampled`),
    "best" the best by reward (Best-of-N; by weighted vote when the search answers by vote),
    "majority" the commonest answer (self-consistency)."""

    mode: str  # a writer's name: base, private, llm, collaborative (that is Proxy-Tuning), average
    choose: Literal["only", "best", "majority"] = "only"
    sampled: bool = False


MODES = {
    "slm_base": "base",
    "slm": "private",
    "llm": "llm",
    "proxy_tuning": "collaborative",
    "average": "average",
}


BASELINES: dict[str, Baseline] = {
    **{name: Baseline(mode) for name, mode in MODES.items()},
    **{f"{name}_best_of_n": Baseline(mode, "best", True) for name, mode in MODES.items()},
    **{f"{name}_majority": Baseline(mode, "majority", True) for name, mode in MODES.items()},
}
"""By name; searches with one mode or a random one are `SearchConfig.modes`."""


SEARCH = "search"


class AnswersConfig(Section):
    """The general LLM and the reward model of a site. `base_url`: the gateway or vLLM that serves
    the LLM; without one the LLM of `llm_path` runs beside the SLM. `llm_is_remote`: that one stands
    for a remote LLM, as in a simulation: the policy on questions holds.

    `write`: `fusion` (LLM and SLMs write token by token; one tokenizer) or `steps` (the LLM writes
    whole steps by itself).
    """

    reward: RewardConfig | None = None
    """The process reward model; null: only methods without rewards."""
    llm_path: str | None = None
    """The LLM beside the SLM, where no base_url names a gateway."""
    llm_is_remote: bool = True
    """The LLM of llm_path stands for a remote one, as in a simulation: the policy on questions
    holds."""
    base_url: str | None = None
    """The gateway or vLLM that serves the LLM, up to and including /v1."""
    model: str | None = None
    """The endpoint's name for the model; null: the first that it serves."""
    key_env: str | None = None
    """NAME of the environment variable that holds the key."""
    seconds: float = pydantic.Field(20.0, gt=0)
    """For one request; then the private SLM writes the step."""
    top: int = pydantic.Field(20, ge=-1)
    """Alternatives asked for at each place; -1: all."""
    draft: int = pydantic.Field(8, ge=1)
    """Tokens in a draft."""
    allow_http: bool = False
    """Whether an address without TLS is taken."""
    write: Literal["fusion", "steps"] = "fusion"
    """fusion: LLM and SLMs write token by token, with one tokenizer; steps: the LLM writes
    whole steps."""


@dataclass(frozen=True)
class Method:
    """A search, or a baseline, with its modes."""

    baseline: Baseline | None
    modes: tuple[str, ...]

    @property
    def asks_llm(self) -> bool:
        """Whether a question is shown to the LLM."""
        return bool(set(self.modes) - {"base", PRIVATE})


def method_of(name: str, config: SearchConfig) -> Method:
    """The method of that name under the search's settings. Raises ValueError for an unknown one."""
    if name == SEARCH:
        return Method(
            None,
            (PRIVATE, COLLABORATIVE) if config.modes in ("both", "random") else (config.modes,),
        )
    if name not in BASELINES:
        raise ValueError(f"method: found {name!r}; {nearest(name, [SEARCH, *BASELINES])}")
    return Method(BASELINES[name], (BASELINES[name].mode,))


def check_search(values: Mapping[str, Any]) -> SearchConfig:
    """The settings that a message carries. Raises ValueError for what is none."""
    try:
        return SearchConfig.model_validate(dict(values))
    except pydantic.ValidationError as failure:
        first = failure.errors()[0]
        raise ValueError(f"search.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
