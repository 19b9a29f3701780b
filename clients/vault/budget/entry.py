"""The lines of a ledger: charges, and what was kept of the releases that they paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedduet.lm.dp.accounting import Event


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One charge."""

    id: str  # unique; a message that is repeated brings the same one
    run: str
    what: str  # the mechanism, e.g. "dp-sgd"
    time: str  # UTC, ISO 8601
    event: Event  # of one release
    released: int  # how many texts, scores or arrays left
    unit: str = "record"  # neighbouring data sets differ in one of it
    rounds: int = 1  # releases of this event that this line pays for, its own included
    part_of: str | None = None  # the id of the line that paid for this one
    coins: str = ""  # SHA-256 of what the mechanism draws its coins and noise from

    def to_line(self) -> dict[str, Any]:
        """As `from_line` reads it."""
        return asdict(self) | {"event": self.event.to_dict()}

    @staticmethod
    def from_line(line: dict[str, Any]) -> Entry:
        """Also of ledgers older than the choice of units and than plans. Raises ValueError,
        TypeError or KeyError for a line that is no charge."""
        return Entry(**{**line, "event": Event.from_dict(line["event"])})


@dataclass(frozen=True)
class Kept:
    """That the release `id` was kept, as a file whose SHA-256 is `digest`."""

    id: str
    digest: str

    def to_line(self) -> dict[str, Any]:
        """As `read` reads it."""
        return {"kept": self.id, "digest": self.digest}


def read(line: dict[str, Any]) -> Entry | Kept:
    """The line as what it is. Raises ValueError, TypeError or KeyError for one that is neither."""
    if "kept" in line:
        return Kept(line["kept"], line["digest"])
    return Entry.from_line(line)


def plans(entries: Sequence[Entry]) -> list[Event]:
    """What `entries` cost: each plan with all its rounds, at its first line; its other lines cost
    nothing."""
    return [entry.event.times(entry.rounds) for entry in entries if entry.part_of is None]


def protected(entries: Sequence[Entry]) -> list[Event]:
    """The same without releases that carry no guarantee."""
    return [plan for plan in plans(entries) if plan.kind != "none"]


def left(entries: Sequence[Entry], plan: Entry) -> int:
    """How many releases of `plan` nobody asked for yet."""
    return plan.rounds - 1 - sum(entry.part_of == plan.id for entry in entries)


def open_plan(entries: Sequence[Entry], run: str, what: str) -> Entry | None:
    """The first plan of a run's mechanism that has releases left, or None."""
    return next(
        (
            entry
            for entry in entries
            if (entry.run, entry.what) == (run, what) and left(entries, entry) > 0
        ),
        None,
    )


def by_spender(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """By run and mechanism, in order of first appearance."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.run, entry.what), []).append(entry)
    return groups


def kept_digest(lines: Sequence[dict[str, Any]], id: str) -> str | None:
    """The digest of what was kept of the release `id`, or None."""
    return next((line["digest"] for line in lines if line.get("kept") == id), None)
