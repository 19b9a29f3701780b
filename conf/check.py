"""Turns one section of the configuration into its typed, frozen form, or into a sentence that says
what to change."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic


class ConfigError(ValueError):
    """A configuration or input that cannot work; its text is for the person who wrote it."""


class RunFailed(RuntimeError):
    """A run that could not go on for a reason that its text says; not a defect of the program."""


class Section(pydantic.BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


S = TypeVar("S", bound=Section)


def nearest(found: str, allowed: list[str]) -> str:
    """A hint naming the closest allowed names, or all of them."""
    close = difflib.get_close_matches(found, allowed, n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"allowed: {', '.join(sorted(allowed)[:30])}"
    )


def check(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """`values` as a `kind`. Raises ConfigError with one line per problem: the key, what was found,
    what is allowed."""
    try:
        return kind.model_validate(dict(values))
    except pydantic.ValidationError as failure:
        raise ConfigError(
            "\n".join(_sentence(kind, error, where) for error in failure.errors())
        ) from None


def _sentence(kind: type[Section], error: Any, where: str) -> str:
    key = ".".join([where, *(str(part) for part in error["loc"])])
    found = error["input"]
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(str(error['loc'][-1]), list(kind.model_fields))}"
    if error["type"] == "missing":
        return f"{key}: missing; add it to the {where} section or pass {key}=..."
    if error["type"] == "value_error":
        return (
            f"{key}: {error['ctx']['error']}"
            if error["loc"]
            else f"{where}: {error['ctx']['error']}"
        )
    return f"{key}: found {found!r}; {error['msg'][0].lower()}{error['msg'][1:]}"
