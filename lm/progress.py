"""Says how far a long loop is, to whoever runs the process and wants to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a phase; `figures` are numbers worth showing beside it (a loss,
    tokens per second)."""

    phase: str
    done: int
    total: int
    unit: str = ""
    figures: dict[str, float] = field(default_factory=dict)


Listener = Callable[[Progress], None]
_everyone: list[Listener | None] = [None]  # the process-wide listener
# one for the running thread or task only
_here: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listen(listener: Listener | None) -> None:
    """Makes `listener` the process-wide one (None: nobody listens). It must not raise and should
    return at once."""
    _everyone[0] = listener


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """`listener` hears what this thread reports inside the `with`, instead of the process-wide
    one."""
    token = _here.set(listener)
    try:
        yield
    finally:
        _here.reset(token)


def report(phase: str, done: int, total: int, unit: str = "", **figures: float) -> None:
    """Tells the listener, if there is one. A report of private training must not carry losses of
    private texts."""
    listener = _here.get() or _everyone[0]
    if listener is not None:
        listener(Progress(phase, done, total, unit, figures))
