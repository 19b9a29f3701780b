"""Finds what cannot work before any model is loaded: every section, the data of every site, model
folders, the LLM's engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedduet.clients.vault.answering.config import (
    BASELINES,
    SEARCH,
    AnswersConfig,
    SearchConfig,
    method_of,
)
from fedduet.clients.vault.config import PrivacyConfig, site_settings
from fedduet.clients.vault.release.privacy_unit import check_unit
from fedduet.conf.check import ConfigError, check, nearest
from fedduet.lm.models.folder import check_model_folder
from fedduet.lm.training.config import SLMConfig
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import check_llm
from fedduet.server.measuring.general import load_general
from fedduet.server.strategy import ChosenStrategy, chosen_strategy, task_for
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.data.load import check_data
from fedduet.tasks.data.questions import QuestionsConfig, load_questions, names_of


def preflight(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the sites. Raises ConfigError with what was found, where, and what is allowed.

    Builds the built-in world's models when the configuration names them and they are not cached
    yet.
    """
    chosen = chosen_strategy(config["strategy"])
    task = task_for(chosen.spec, config["task"])
    if isinstance(task, QuestionsConfig):
        return _check_questions(config, chosen, task)
    slm, generator, privacy = site_settings(config)
    check_unit(privacy.policy, task)
    by_user = privacy.policy.unit == "user"
    llm = check(LLMConfig, config["llm"], "llm")
    rows = check_data(
        task, int(config["seed"]), logical_batch=generator.logical_batch, by_user=by_user
    )
    _check_delta(
        privacy,
        {name: site.users if by_user else sum(site.train.values()) for name, site in rows.items()},
    )
    if chosen.tuning:
        load_general(chosen.tuning.general, int(config["seed"]))
    check_model_folder(resolve(slm.path), "slm.path")
    check_model_folder(resolve(generator.path), "generator.path", causal=True)
    check_llm(llm.model_copy(update={"path": resolve(llm.path)}) if llm.path else llm)
    return names_of(task)


def _check_questions(
    config: Mapping[str, Any], chosen: ChosenStrategy, task: QuestionsConfig
) -> tuple[str, ...]:
    """Of a task of questions: every site's data, the search, the methods, the SLM, the LLM and the
    reward model."""
    slm, answers = (
        check(SLMConfig, config["slm"], "slm"),
        check(AnswersConfig, config["answers"], "answers"),
    )
    policy = check(PrivacyConfig, config["privacy"], "privacy").policy
    check_unit(policy, task)
    for name, (method, values) in chosen.needs.methods.items():
        search = check(SearchConfig, values, "strategy.search")
        if method != SEARCH and method not in BASELINES:
            known = list(dict.fromkeys((*chosen.spec.columns, *BASELINES)))
            raise ConfigError(f"strategy.methods: found {name!r}; {nearest(name, known)}")
        asks = method_of(method, search).asks_llm
        if asks and policy.share_questions == "never":
            raise ConfigError(
                f"strategy.methods: {name} shows questions to the LLM, and"
                " privacy.policy.share_questions is never; allowed: gateway_only, or methods of"
                " the site's own models (slm_base, slm, slm_best_of_n, search_private)"
            )
    for client in names_of(task):
        load_questions(task, client, int(config["seed"]))
    check_model_folder(resolve(slm.path), "slm.path", causal=True)
    if answers.llm_path and not answers.base_url:
        check_model_folder(resolve(answers.llm_path), "answers.llm_path", causal=True)
    if answers.reward:
        check_model_folder(resolve(answers.reward.path), "answers.reward.path")
    return names_of(task)


def _check_delta(privacy: PrivacyConfig, units: Mapping[str, int]) -> None:
    if privacy.delta is None or math.isinf(privacy.epsilon) or privacy.policy.allow_large_delta:
        return
    for site, count in units.items():
        if privacy.delta >= 1 / count:
            raise ConfigError(
                f"privacy.delta: found {privacy.delta:g}, but {site} has {count}"
                f" {privacy.policy.unit}s; allowed: below 1/n = {1 / count:g} (or"
                " privacy.policy.allow_large_delta=true)"
            )
