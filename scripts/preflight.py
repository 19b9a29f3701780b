"""Finds what cannot work before any model is loaded: every section, the data of every site, model folders, the LLM's engine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clients.vault.config import PrivacyConfig, site_settings
from conf.check import ConfigError, check
from lm.load import check_model_folder
from server.app import strategy_settings
from server.general import load_general
from server.llm.config import LLMConfig
from server.llm.load import check_llm
from tasks.config import TaskConfig
from tasks.load import check_data, client_names
from tasks.standin import resolve


def preflight(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the sites. Raises ConfigError with what was found, where, and what is allowed.

    Builds the built-in world's models when the configuration names them and they are not cached yet.
    """
    _, tuning = strategy_settings(config)
    task = check(TaskConfig, config["task"], "task")
    slm, generator, privacy = site_settings(config)
    llm = check(LLMConfig, config["llm"], "llm")
    rows = check_data(task, int(config["seed"]), logical_batch=generator.logical_batch)
    _check_delta(privacy, {name: sum(site.train.values()) for name, site in rows.items()})
    if tuning:
        load_general(tuning.general, int(config["seed"]))
    check_model_folder(resolve(slm.path), "slm.path")
    check_model_folder(resolve(generator.path), "generator.path", causal=True)
    check_llm(llm.model_copy(update={"path": resolve(llm.path)}) if llm.path else llm)
    return client_names(task)


def _check_delta(privacy: PrivacyConfig, rows: Mapping[str, int]) -> None:
    if privacy.delta is None or math.isinf(privacy.epsilon) or privacy.policy.allow_large_delta:
        return
    for site, count in rows.items():
        if privacy.delta >= 1 / count:
            raise ConfigError(
                f"privacy.delta: found {privacy.delta:g}, but {site} has {count} records; allowed: below 1/n = {1 / count:g} "
                "(or privacy.policy.allow_large_delta=true)"
            )
