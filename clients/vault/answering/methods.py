"""What a site answers questions with: who writes steps, who rewards them, and the search or a
baseline over both (METHODS, G-Boost)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pydantic
from fedduet.clients.vault.answering.baselines import BASELINES, Baseline, sample_many
from fedduet.clients.vault.answering.cloud_fusion import RemoteFusion
from fedduet.clients.vault.answering.cloud_llm import Remote, RemoteConfig
from fedduet.clients.vault.answering.search import COLLABORATIVE, PRIVATE, SearchConfig, search_many
from fedduet.clients.vault.answering.sent import Sent
from fedduet.clients.vault.answering.solving import Form, RewardModel, Solution
from fedduet.clients.vault.answering.whole_steps import FallbackWriter, WholeStepWriter
from fedduet.clients.vault.answering.writers import StepWriter, local_writers
from fedduet.conf.check import ConfigError, Section, nearest
from fedduet.lm.decoding.fusion import shared_context, shared_vocabulary, slm_pair
from fedduet.lm.decoding.sample import end_tokens
from fedduet.lm.models.load import load_causal_lm
from fedduet.lm.training.reward import RewardConfig, StepRewards
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.reasoning import answer_key, find_answer, is_final, prompt

FORM = Form(prompt, find_answer, answer_key, is_final)
SEARCH = "search"
Model = tuple[Any, Any]  # with its tokenizer


class AnswersConfig(Section):
    """The general LLM and the reward model of a site. `base_url`: the gateway or vLLM that serves
    the LLM; without one the LLM of `llm_path` runs beside the SLM. `llm_is_remote`: that one stands
    for a remote LLM, as in a simulation: the policy on questions holds.

    `write`: `fusion` (LLM and SLMs write token by token; one tokenizer) or `steps` (the LLM writes
    whole steps by itself).
    """

    reward: RewardConfig | None = None  # null: only methods without rewards
    llm_path: str | None = None
    llm_is_remote: bool = True
    base_url: str | None = None
    model: str | None = None
    key_env: str | None = None  # NAME of the environment variable that holds the key
    seconds: float = pydantic.Field(20.0, gt=0)  # for one request
    top: int = pydantic.Field(20, ge=-1)  # alternatives asked for at each place; -1: all
    draft: int = pydantic.Field(8, ge=1)  # tokens in a draft
    allow_http: bool = False
    write: Literal["fusion", "steps"] = "fusion"


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


class Answering:
    """The writers and the reward model of one private SLM, made when first needed and kept.

    `sent`: where what goes to a remote LLM is written down before it goes; without it nothing goes.
    """

    def __init__(self, config: AnswersConfig, tuned: Model, base: Model) -> None:
        self._config, self._tuned, self._base = config, tuned, base
        self.sent: Sent | None = None
        self._made: dict[float | None, dict[str, StepWriter]] = {}

    def solve(
        self,
        name: str,
        questions: Sequence[str],
        seeds: Sequence[int],
        search: SearchConfig,
        samples: int = 1,
    ) -> tuple[list[Solution], int]:
        """One solution for each question, and how many requests the remote LLM was sent.

        Raises ValueError for an unknown method, an empty question or one that is too long, and
        ConfigError where the site has no LLM or no reward model for it.
        """
        method = method_of(name, search)
        if method.asks_llm and not (self._config.base_url or self._config.llm_path):
            raise ConfigError(
                f"answers: {name} asks an LLM, and this site knows none; set base_url or llm_path,"
                " or use private methods"
            )
        if (method.baseline is None or method.baseline.choose == "best") and self._reward is None:
            raise ConfigError(
                f"answers.reward: null, and {name} needs a reward model; give the folder of one"
            )
        writers, before = self._writers(search.alpha, method.asks_llm), self._requests
        if method.baseline is None and COLLABORATIVE in method.modes and search.fusion == "average":
            if "average" not in writers:
                raise ConfigError(
                    "search.fusion: average needs the LLM's logits; allowed through a gateway:"
                    " proxy"
                )
            writers = {**writers, COLLABORATIVE: writers["average"]}
        if method.baseline is None:
            found = search_many(questions, seeds, writers, self._reward, FORM, search)  # type: ignore[arg-type]
        else:
            found = sample_many(
                method.baseline, questions, seeds, writers, FORM, search, samples, self._reward
            )
        return found, self._requests - before

    @cached_property
    def _reward(self) -> RewardModel | None:
        reward = self._config.reward
        return (
            StepRewards(reward.model_copy(update={"path": resolve(reward.path)}), prompt)
            if reward
            else None
        )

    @property
    def _requests(self) -> int:
        return self._remote.counts.requests if "_remote" in self.__dict__ else 0

    @cached_property
    def _remote(self) -> Remote:
        config = self._config
        key = os.environ.get(config.key_env) if config.key_env else None
        if config.key_env and not key:
            raise ConfigError(f"answers.key_env: the environment has no {config.key_env}")
        return Remote(
            RemoteConfig(
                str(config.base_url),
                config.model,
                key,
                config.seconds,
                0,
                config.top,
                config.allow_http,
            ),
            self._keep,
        )

    def _keep(self, prompts: Sequence[str | Sequence[int]]) -> None:
        if self.sent is None:
            raise RuntimeError("nothing is sent that is not written down")
        self.sent.keep(
            [one if isinstance(one, str) else self._tuned[1].decode(one) for one in prompts]
        )

    def _writers(self, alpha: float, with_llm: bool) -> Mapping[str, StepWriter]:
        known = self._made.setdefault(alpha if with_llm else None, {})
        if not known:
            if not with_llm:
                known |= local_writers(self._tuned, self._base, final=is_final)
            elif self._config.base_url:
                known |= self._remote_writers(alpha)
            else:
                llm = load_causal_lm(resolve(str(self._config.llm_path)), tokenizer=self._tuned[1])
                known |= local_writers(
                    self._tuned, self._base, (llm, self._tuned[1]), alpha, is_final
                )
        return known

    def _remote_writers(self, alpha: float) -> dict[str, StepWriter]:
        """Writers over HTTP; whatever the remote LLM does not write in time, the private SLM
        writes."""
        config, remote = self._config, self._remote
        writers = local_writers(self._tuned, self._base, final=is_final)
        context = shared_context([self._tuned[0], self._base[0]])
        limit = 4 * config.seconds
        alone = WholeStepWriter(remote.complete, context, seconds=limit)
        writers["llm"] = FallbackWriter(alone, writers[PRIVATE])
        if config.write == "steps":
            writers[COLLABORATIVE] = writers["llm"]
            return writers
        tokenizer, pair = self._tuned[1], slm_pair(self._tuned[0], self._base[0])
        vocabulary = shared_vocabulary({"private SLM": self._tuned, "base SLM": self._base})
        ends = end_tokens(self._tuned[0], tokenizer)
        fusion = RemoteFusion(
            remote, pair.tuned, pair.base, tokenizer, ends, vocabulary, alpha, config.draft, limit
        )
        writers[COLLABORATIVE] = FallbackWriter(
            WholeStepWriter(fusion, context, fusion.count, seconds=limit), writers[PRIVATE]
        )
        return writers


def check_search(values: Mapping[str, Any]) -> SearchConfig:
    """The settings that a message carries. Raises ValueError for what is none."""
    try:
        return SearchConfig.model_validate(dict(values))
    except pydantic.ValidationError as failure:
        first = failure.errors()[0]
        raise ValueError(f"search.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
