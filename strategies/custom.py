"""A strategy of the user's own: from a Python file, or from an installed package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
from fedduet.conf.check import ConfigError, Section
from fedduet.strategies import OUTSIDE, find
from fedduet.strategies.run.spec import GuidedTexts, Needs, Spec, needs_of_section

ENTRY = "strategy"


class CustomConfig(GuidedTexts):
    """A strategy of the user's own: `file`, read where the ServerApp runs, or an installed one by
    `name`. `settings` are its own section, checked by its spec; `curate` and `augment` are of the
    LLM that writes for it, where its own section has no such keys."""

    name: str = OUTSIDE
    """custom with a file, or the name of an installed strategy."""
    file: str | None = None
    """A Python file that defines SPEC, or strategy(moves, settings)."""
    settings: Mapping[str, Any] = {}
    """Its own section: checked by its spec, or handed to the function as it is."""


class PlainSettings(pydantic.RootModel[dict[str, Any]]):
    """The settings of a file that has a function and no spec: anything."""


def outside(section: CustomConfig) -> tuple[Spec, type[pydantic.BaseModel]]:
    """The spec that a section names, and the class of its settings. Raises ConfigError."""
    if section.file is not None:
        return _of_file(section.file)
    if (spec := find(section.name)) is None:
        raise ConfigError(
            f"strategy.file: missing; give a Python file that defines SPEC, or {ENTRY}(moves,"
            " settings)"
        )
    return spec, spec.config


def needs_of(spec: Spec, settings: Any, section: CustomConfig) -> Needs:
    """What the strategy asks for; its LLM writes by the outer section where its own says
    nothing."""
    needs = needs_of_section(None) if isinstance(settings, dict) else spec.needs(settings)
    return needs if needs.guided else Needs(("..", section), needs.tuned, needs.methods)


def _of_file(file: str) -> tuple[Spec, type[pydantic.BaseModel]]:
    path = Path(file)
    if not path.is_file():
        raise ConfigError(
            f"strategy.file: no file {file}; give a Python file that defines SPEC, or"
            f" {ENTRY}(moves, settings)"
        )
    found = importlib.util.spec_from_file_location(f"custom_{path.stem}", path)
    module = importlib.util.module_from_spec(found)  # type: ignore[arg-type]
    try:
        found.loader.exec_module(module)  # type: ignore[union-attr]
    except (SyntaxError, UnicodeDecodeError, ValueError) as problem:
        raise ConfigError(f"strategy.file: {file} is no Python file: {problem}") from None
    except Exception as problem:
        raise ConfigError(
            f"strategy.file: {file} stopped when it was read: {type(problem).__name__}: {problem}"
        ) from problem
    if isinstance(spec := getattr(module, "SPEC", None), Spec):
        return spec, spec.config
    if spec is not None:
        raise ConfigError(
            f"strategy.file: SPEC of {file} is a {type(spec).__name__}; it must be a"
            " fedduet.strategies.run.spec.Spec"
        )
    own = [
        name
        for name, one in vars(module).items()
        if callable(one) and getattr(one, "__module__", "") == module.__name__
    ]
    if ENTRY not in own:
        raise ConfigError(
            f"strategy.file: {file} defines {', '.join(own) or 'no function'}; it must define"
            f" {ENTRY}(moves, settings), or SPEC"
        )
    function = getattr(module, ENTRY)
    return _of_function(function), PlainSettings


def _of_function(function: Any) -> Spec:
    return Spec(
        name=OUTSIDE,
        config=Section,
        run=function,
        final=OUTSIDE,
        question=f"What does {OUTSIDE} bring?",
        contrasts=((OUTSIDE, "local"),),
        columns={"local": "a site's own records alone", OUTSIDE: "what the strategy ends with"},
    )
