"""Turns one section of the configuration into its typed, frozen form, or into a sentence that says
what to change."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pydantic


class ConfigError(ValueError):
    """A configuration or input that cannot work; its text is for the person who wrote it."""


class RunFailed(RuntimeError):
    """A run that could not go on for a reason that its text says; not a defect of the program."""


class Waiting(RunFailed):
    """A run that stopped where something outside is missing (its LLM, say), and that goes on from
    there, at no cost, when the same command is given again."""


class Section(pydantic.BaseModel):
    """Base of every section: frozen, and unknown keys are errors. The sentence under a field is its
    description, for references and schemas."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=False, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Section)
T = TypeVar("T")


class Problems:
    """Collects what is wrong, so that a person reads all of it at once and not one after
    another."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._said)

    def of(self, read: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
        """What `read` returns; None, and its complaints are kept, where it raises ConfigError."""
        try:
            return read(*arguments, **named)
        except ConfigError as problem:
            self._said |= dict.fromkeys(str(problem).split("\n"))
            return None

    def end(self) -> None:
        """Raises ConfigError with every complaint, each once, in a line of its own."""
        if self._said:
            raise ConfigError("\n".join(self._said))


def unset(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """A complaint for each key that a YAML file leaves to the person (`???`) and nobody has set."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from unset(value, f"{above}{key}.")
        elif value == "???":
            yield f"{above}{key}: not set; pass {above}{key}=..."


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
    key = ".".join([*([where] if where else []), *(str(part) for part in error["loc"])])
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
