"""The Hydra configuration tree, and how a run's configuration is composed from it or handed over as
one string."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedduet.conf.check import ConfigError
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

FOLDER = Path(__file__).parent
BUILTIN = "builtin:"


def _builtin_or(path: str, builtin: Any, other: Any) -> Any:
    """In YAML: ${builtin_or:PATH,A,B} is A for a model of the built-in world and B for any
    other."""
    return builtin if str(path).startswith(BUILTIN) else other


OmegaConf.register_new_resolver("builtin_or", _builtin_or, replace=True)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration tree for Hydra `overrides`, as plain dicts. Raises ConfigError for an
    unknown group choice or key."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():  # within another @hydra.main, e.g. a sweep
        return plain(hydra_compose("config", overrides=list(overrides)))
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return plain(hydra_compose("config", overrides=list(overrides)))


def plain(config: Any) -> dict[str, Any]:
    """What Hydra composed, as plain dicts. Raises ConfigError for a value that refers to one that
    the person has to set."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except InterpolationToMissingValueError as problem:
        key = str(problem).partition("Missing mandatory value: ")[2].split()[0]
        raise ConfigError(f"{key}: not set; pass {key}=...") from None


def choices(group: str) -> list[str]:
    """The names a configuration group offers, e.g. choices("strategy")."""
    return sorted(file.stem for file in (FOLDER / group).glob("*.yaml"))


def keys(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """All keys of a composed configuration, dotted: "privacy.epsilon"."""
    for name, value in config.items():
        yield f"{above}{name}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{above}{name}.")


def run_folder(config: Mapping[str, Any], suffix: str) -> str:
    """Where a run goes whose folder is not given: its name tells strategy, task and seed."""
    name = f"{config['strategy']['name']}-{config['task']['name']}-seed{config['seed']}"
    return f"runs/{name}-{suffix}"


def dump(config: Mapping[str, Any]) -> str:
    """A composed configuration as one string, the form in which it travels in Flower's run
    config."""
    return json.dumps(config)


def from_run_config(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a Flower run.

    `config` holds a dumped tree (our launcher), `overrides` one string of Hydra overrides
    (`flwr run`, `flower-simulation`); any other key is itself an override, e.g.
    `strategy = "fdkt"`, `privacy.epsilon = 8`.
    """
    import shlex

    if run_config.get("config"):
        return json.loads(run_config["config"])
    overrides = shlex.split(str(run_config.get("overrides", "")))
    overrides += [
        f"{key}={_literal(value)}"
        for key, value in run_config.items()
        if key not in ("config", "overrides") and value != ""
    ]
    return compose(overrides)


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
