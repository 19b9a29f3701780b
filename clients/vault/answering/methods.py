"""What a site answers questions with: who writes steps, who rewards them, and the search or a
baseline over both (METHODS, G-Boost)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from fedduet.clients.vault.answering.baselines import sample_many
from fedduet.clients.vault.answering.cloud_fusion import RemoteFusion
from fedduet.clients.vault.answering.cloud_llm import Remote, RemoteConfig
from fedduet.clients.vault.answering.config import (
    COLLABORATIVE,
    PRIVATE,
    AnswersConfig,
    SearchConfig,
    method_of,
)
from fedduet.clients.vault.answering.search import search_many
from fedduet.clients.vault.answering.sent import Sent
from fedduet.clients.vault.answering.solving import Form, RewardModel, Solution
from fedduet.clients.vault.answering.steps import StepWriter
from fedduet.clients.vault.answering.whole_steps import FallbackWriter, WholeStepWriter
from fedduet.clients.vault.answering.writers import local_writers
from fedduet.conf.check import ConfigError
from fedduet.lm.decoding.fusion import shared_context, shared_vocabulary, slm_pair
from fedduet.lm.decoding.sample import end_tokens
from fedduet.lm.models.load import load_causal_lm
from fedduet.lm.training.reward import StepRewards
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.reasoning import answer_key, find_answer, is_final, prompt

FORM = Form(prompt, find_answer, answer_key, is_final)
Model = tuple[Any, Any]  # with its tokenizer


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
