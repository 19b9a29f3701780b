"""Finds what cannot work before any model is loaded: every section, the data of every site, model
folders, the LLM's engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedduet.clients.vault.answering.config import (
    BASELINES,
    SEARCH,
    SearchConfig,
    method_of,
)
from fedduet.clients.vault.config import PrivacyConfig
from fedduet.clients.vault.release.policy import Policy
from fedduet.clients.vault.release.privacy_unit import check_unit
from fedduet.conf.check import ConfigError, Problems, check, nearest
from fedduet.lm.models.folder import check_model_folder
from fedduet.scripts.launching.run_config import RunConfig
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import check_llm
from fedduet.server.measuring.general import load_general
from fedduet.tasks.builtin.standin import resolve
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import check_data
from fedduet.tasks.data.questions import QuestionsConfig, load_questions, names_of


def preflight(run: RunConfig) -> tuple[str, ...]:
    """The names of the sites. Raises ConfigError with all that cannot work: what was found, where,
    and what is allowed.

    Builds the built-in world's models when the configuration names them and they are not cached
    yet.
    """
    problems = Problems()
    problems.of(check_unit, run.sites.privacy.policy, run.task)
    if isinstance(run.task, QuestionsConfig):
        _check_questions(run, run.task, problems)
    else:
        _check_texts(run, run.task, problems)
    problems.end()
    return names_of(run.task)


def _check_texts(run: RunConfig, task: TaskConfig, problems: Problems) -> None:
    """Of a task of classification: every site's data, the models, and the LLM's engine."""
    part, tuning, llm = run.sites, run.server.strategy.tuning, run.server.llm
    by_user = part.privacy.policy.unit == "user"
    if not problems:  # by users, whose column may be missing
        batch = part.generator.logical_batch
        rows = problems.of(check_data, task, run.seed, logical_batch=batch, by_user=by_user)
        counts = {
            name: site.users if by_user else sum(site.train.values())
            for name, site in (rows or {}).items()
        }
        problems.of(_check_delta, part.privacy, counts)
    if problems:  # models are looked at, and made, where the rest works
        return
    if tuning:
        problems.of(load_general, tuning.general, run.seed)
    for key, path, causal in (
        ("slm.path", part.slm.path, False),
        ("generator.path", part.generator.path, True),
    ):
        problems.of(_check_model, path, key, causal)
    problems.of(_check_engine, llm)


def _check_model(path: str, key: str, causal: bool = False) -> None:
    check_model_folder(resolve(path), key, causal=causal)


def _check_engine(llm: LLMConfig) -> None:
    check_llm(llm.model_copy(update={"path": resolve(llm.path)}) if llm.path else llm)


def _check_questions(run: RunConfig, task: QuestionsConfig, problems: Problems) -> None:
    """Of a task of questions: every site's data, the search, the methods, the SLM, the LLM and the
    reward model."""
    slm, answers, policy = run.sites.slm, run.sites.answers, run.sites.privacy.policy
    for name, asked in run.server.strategy.needs.methods.items():
        problems.of(_check_method, name, asked, policy, list(run.server.strategy.spec.columns))
    for client in problems.of(names_of, task) or ():
        problems.of(load_questions, task, client, run.seed)
    if problems:  # models are looked at, and made, where the rest works
        return
    problems.of(_check_model, slm.path, "slm.path", causal=True)
    if answers.llm_path and not answers.base_url:
        problems.of(_check_model, answers.llm_path, "answers.llm_path", causal=True)
    if answers.reward:
        problems.of(_check_model, answers.reward.path, "answers.reward.path")


def _check_method(
    name: str, asked: tuple[str, Mapping[str, Any]], policy: Policy, columns: list[str]
) -> None:
    """Raises ConfigError for a method that no site knows, or that its policy forbids."""
    method, search = asked[0], check(SearchConfig, asked[1], "strategy.search")
    if method != SEARCH and method not in BASELINES:
        known = list(dict.fromkeys((*columns, *BASELINES)))
        raise ConfigError(f"strategy.methods: found {name!r}; {nearest(name, known)}")
    if method_of(method, search).asks_llm and policy.share_questions == "never":
        raise ConfigError(
            f"strategy.methods: {name} shows questions to the LLM, and"
            " privacy.policy.share_questions is never; allowed: gateway_only, or methods of the"
            " site's own models (slm_base, slm, slm_best_of_n, search_private)"
        )


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
