"""Ratios measured in one run: the ways of doing something take turns, so that whatever else the
machine does meets them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Figure:
    """One line of a bench. `aim`: what it should reach ("<= 1.05"), or nothing. `detail`: what else
    a reader wants to know."""

    bench: str
    work: str
    value: float
    unit: str
    aim: str = ""
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the aim was reached; None without one."""
        if not self.aim:
            return None
        relation, bound = self.aim.split()
        return self.value <= float(bound) if relation == "<=" else self.value >= float(bound)


def take_turns(ways: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each way in each turn: A B C A B C ..., after a turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            synchronise()
            began = time.perf_counter()
            way()
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> tuple[float, str]:
    """(median over the turns of `over` / `under`, its range in words)."""
    ratios = [one / other for one, other in zip(seconds[over], seconds[under], strict=True)]
    return statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"


def synchronise() -> None:
    """Waits for a GPU's queue, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """Where benches run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
