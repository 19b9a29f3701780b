"""The strategy that a configuration names: its spec, its settings, and what the server needs for
it, all checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedduet.conf.check import ConfigError, Problems, check, nearest
from fedduet.lm.training.config import ExamplesConfig, PolicyConfig
from fedduet.server.measuring.general import GeneralConfig
from fedduet.server.writing.augment import AugmentConfig
from fedduet.server.writing.curate import CurateConfig
from fedduet.server.writing.write import WriteConfig
from fedduet.strategies import OUTSIDE, builtin, find
from fedduet.strategies.custom import CustomConfig, PlainSettings, needs_of, outside
from fedduet.strategies.run.spec import GuidedTexts, Needs, Spec, TunedLLM
from fedduet.tasks.data.questions import AnyTask, check_task


@dataclass(frozen=True)
class TunerSettings:
    """How the LLM writes, is tuned and is measured."""

    write: WriteConfig
    policy: PolicyConfig
    examples: ExamplesConfig
    general: GeneralConfig
    llm_test_rows: int


@dataclass(frozen=True, kw_only=True)
class ChosenStrategy:
    """A strategy with its checked settings; `tuning` is None where the LLM is not tuned."""

    spec: Spec
    settings: Any
    needs: Needs
    curate: CurateConfig
    augment: AugmentConfig
    tuning: TunerSettings | None

    @property
    def rounds(self) -> int:
        """Of the run, for its figures."""
        return getattr(self.settings, "rounds", 1)


def chosen_strategy(section: Mapping[str, Any]) -> ChosenStrategy:
    """The strategy of the section `strategy`. Raises ConfigError; nothing is loaded but the
    strategy's own code."""
    name, where = str(section.get("name", "")), "strategy"
    if name in builtin():
        spec = find(name)
        settings = check(spec.config, section, where)
        needs = spec.needs(settings)
    elif name == OUTSIDE or section.get("file") or find(name):
        custom = check(CustomConfig, section, where)
        spec, kind = outside(custom)
        where = f"{where}.settings"
        if kind is PlainSettings:
            settings = dict(custom.settings)
        else:
            settings = check(kind, custom.settings, where)
        needs = needs_of(spec, settings, custom)
    else:
        known = [*builtin(), OUTSIDE]
        raise ConfigError(f"strategy.name: unknown strategy {name!r}; {nearest(name, known)}")

    def at(part: str) -> str:
        return "strategy" if part == ".." else f"{where}.{part}" if part else where

    found, (part, guided) = Problems(), needs.guided or ("", GuidedTexts())
    curate = found.of(check, CurateConfig, guided.curate, f"{at(part)}.curate")
    augment = found.of(check, AugmentConfig, guided.augment, f"{at(part)}.augment")
    tuning = found.of(tuner_settings, needs.tuned[1], at(needs.tuned[0])) if needs.tuned else None
    found.end()
    return ChosenStrategy(
        spec=spec, settings=settings, needs=needs, curate=curate, augment=augment, tuning=tuning
    )


def tuner_settings(config: TunedLLM, where: str = "strategy") -> TunerSettings:
    """The server's part of the section of a strategy that tunes the LLM. Raises ConfigError."""
    objective, found = {} if config.tuning == "none" else {"objective": config.tuning}, Problems()
    made = TunerSettings(
        found.of(check, WriteConfig, config.write, f"{where}.write"),
        found.of(check, PolicyConfig, dict(config.policy) | objective, f"{where}.policy"),
        found.of(check, ExamplesConfig, config.examples, f"{where}.examples"),
        found.of(check, GeneralConfig, config.general, f"{where}.general"),
        config.llm_test_rows,
    )
    found.end()
    return made


def task_for(spec: Spec, section: Mapping[str, Any]) -> AnyTask:
    """The checked section `task`. Raises ConfigError when it is of another kind than the strategy
    needs."""
    task = check_task(section)
    if task.kind != spec.task:
        raise ConfigError(
            f"task.kind: found {task.kind!r}; strategy {spec.name} needs {spec.task} (fedduet tasks"
            " lists what there is)"
        )
    return task
