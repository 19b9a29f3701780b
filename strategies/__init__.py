"""The methods as algorithm boxes, the moves they are made of, and the run folder they write.

A strategy is one module that exports one `SPEC` (`fedduet.strategies.run.spec.Spec`). Built in are
the modules here that have a YAML file of their name in conf/strategy; an installed package adds its
own by an entry point of the group `fedduet.strategies`; a file needs nothing (`strategy.file=...`).
Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fedduet import conf

if TYPE_CHECKING:
    from fedduet.strategies.run.spec import Spec

GROUP = "fedduet.strategies"  # of entry points
OUTSIDE = "custom"  # the choice in conf/strategy by which the others are run


def builtin() -> list[str]:
    """Names of the strategies that come with the project."""
    return [name for name in conf.choices("strategy") if name != OUTSIDE]


def installed() -> dict[str, Any]:
    """Entry points of installed packages by name; `load()` gives the spec."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def find(name: str) -> Spec | None:
    """The spec of that name, built in or installed; None for another one."""
    if name in builtin():
        return importlib.import_module(f"fedduet.strategies.{name}").SPEC
    point = installed().get(name)
    return point.load() if point else None
