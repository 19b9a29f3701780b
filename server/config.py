"""The server's part of a run's configuration, typed once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet.conf.check import Problems, check
from fedduet.conf.sections import AskedPrivacy, FederationConfig, read_asked, read_common
from fedduet.server.llm.config import LLMConfig
from fedduet.server.strategy import ChosenStrategy, chosen_strategy, task_for
from fedduet.tasks.builtin.standin import describe
from fedduet.tasks.data.questions import AnyTask, QuestionsConfig


@dataclass(frozen=True, kw_only=True)
class ServerPart:
    """What the server runs a strategy by. `llm` is None where sites ask the LLM themselves, and
    `asked_llm` says then how reports name it."""

    seed: int
    folder: Path
    federation: FederationConfig
    strategy: ChosenStrategy
    task: AnyTask
    privacy: AskedPrivacy
    llm: LLMConfig | None
    asked_llm: Mapping[str, Any]


def read_server(config: Mapping[str, Any], problems: Problems | None = None) -> ServerPart:
    """The server's part of a run's configuration. Raises ConfigError with all that is wrong; where
    `problems` are collected by the caller, who ends them, the part may lack what is wrong."""
    found = Problems() if problems is None else problems
    top, run, federation = read_common(config, found)
    strategy = found.of(chosen_strategy, config["strategy"])
    task = strategy and found.of(task_for, strategy.spec, config["task"])
    own_llm = strategy and strategy.spec.task != "reasoning"
    part = ServerPart(
        seed=top and top.seed,
        folder=Path(run.folder) if run and run.folder else _fresh(strategy, task, top),
        federation=federation,
        strategy=strategy,
        task=task,
        privacy=found.of(read_asked, config["privacy"]),
        llm=found.of(check, LLMConfig, config["llm"], "llm") if own_llm else None,
        asked_llm=_asked(config["answers"]) if isinstance(task, QuestionsConfig) else {},
    )
    if problems is None:
        found.end()
    return part


def _fresh(strategy: Any, task: Any, top: Any) -> Path:
    """A run folder named by strategy, task, seed and time."""
    named = (strategy and strategy.spec.name, task and task.name, top and top.seed)
    return Path("runs") / "{}-{}-seed{}-{}".format(*named, time.strftime("%Y%m%d-%H%M%S"))


def _asked(answers: Mapping[str, Any]) -> dict[str, Any]:
    gateway, path = answers.get("base_url"), answers.get("llm_path")
    return {
        "engine": "gateway" if gateway else "transformers",
        "path": gateway or path,
        "description": describe(str(gateway or path)),
    }
