"""The site's privacy ledger: every release is charged to it, on disk, before it leaves, or refused.

The budget is one (epsilon, delta) over all runs and mechanisms. Charges are kept as events and
composed (`fedduet.lm.dp.accounting`), never added. The time in a line is for people: no rule
depends on it, so a clock that is set back changes nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from fedduet.clients.vault.budget.journal import Journal, LedgerError, OpenJournal
from fedduet.lm.dp.accounting import BudgetError, Event, compose, noise_multiplier_for

__all__ = ["BudgetError", "Charge", "Entry", "Ledger", "LedgerError", "SummaryRow"]

_NAMED = 5  # [O] how many spenders a refusal lists


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    id: str  # unique; a message that is repeated brings the same one
    run: str
    what: str  # the mechanism, e.g. "dp-sgd"
    time: str  # UTC, ISO 8601
    event: Event
    released: int  # how many texts, scores or arrays left
    unit: str = "record"  # neighbouring data sets differ in one of it


@dataclass(frozen=True)
class Charge:
    """A charge on the disk, with its epsilon alone and that of the ledger up to and including it,
    both at `delta`."""

    entry: Entry
    epsilon: float
    epsilon_total: float
    delta: float
    repeated: bool  # the id was charged before; nothing was charged now


@dataclass(frozen=True)
class SummaryRow:
    """What one run spent on one mechanism. `cumulated` composes this row with all rows above it."""

    run: str
    what: str
    releases: int
    released: int
    epsilon: float
    cumulated: float


class Ledger:
    """The ledger file at `path` under a total of `budget_epsilon` at `delta`.

    `allow_unprotected` lets events of kind "none" pass. They make `spent` infinite; the budget then
    goes on for the protected events alone. Without it, a ledger that holds one refuses everything,
    since no total can be kept any more. `unprotected` names mechanisms for which alone that leave
    is given, e.g. {"scores"}. `unit`, "record" or "user", is what the budget protects; a ledger
    with charges for the other is refused, since neither follows from the other (docs/privacy.md).
    Any method may raise LedgerError for a file that is damaged or cannot be written. Raises
    ValueError for a budget or delta out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        budget_epsilon: float,
        delta: float,
        allow_unprotected: bool = False,
        clock: Callable[[], float] = time.time,
        unprotected: Collection[str] = (),
        unit: str = "record",
    ) -> None:
        if not budget_epsilon > 0 or (math.isinf(budget_epsilon) and not allow_unprotected):
            raise ValueError(
                f"ledger budget: found epsilon {budget_epsilon!r}; allowed: above 0, and finite"
                " unless unprotected releases are allowed"
            )
        if not 0 < delta < 1:
            raise ValueError(f"ledger delta: found {delta!r}; allowed: above 0, below 1")
        self._journal = Journal(path)
        self.path = self._journal.path
        self.budget_epsilon = float(budget_epsilon)
        self.delta = delta
        self.allow_unprotected = allow_unprotected
        self._unprotected = unprotected
        self._unit = unit
        self._clock = clock

    # --- Reading ----------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All lines, oldest first."""
        with self._journal.locked() as journal:
            return self._entries(journal)

    def events(self) -> list[Event]:
        """The events of all lines, oldest first."""
        return [entry.event for entry in self.entries()]

    def spent(self, delta: float | None = None) -> float:
        """Epsilon of the whole ledger at `delta` (default: the site's own); infinite once an
        unprotected release is in."""
        return compose(self.events(), self._at(delta))

    def find(self, id: str, delta: float | None = None) -> Charge | None:
        """The charge with this id, or None. A vault that starts again asks before it plans, and
        reuses that event."""
        return self._find(self.entries(), id, self._at(delta))

    def summary(self) -> list[SummaryRow]:
        """One row for each run and mechanism, in order of first appearance; the last row's
        `cumulated` is `spent()`."""
        rows: list[SummaryRow] = []
        above: list[Event] = []
        for (run, what), group in _by_spender(self.entries()).items():
            events = [entry.event for entry in group]
            above += events
            released = sum(entry.released for entry in group)
            rows.append(
                SummaryRow(
                    run,
                    what,
                    len(group),
                    released,
                    compose(events, self.delta),
                    compose(above, self.delta),
                )
            )
        return rows

    # --- Planning and charging --------------------------------------------------------------------

    def plan(
        self,
        epsilon_run: float,
        run: str,
        sample_rate: float,
        steps: int,
        rounds_left: int = 1,
        delta: float | None = None,
    ) -> float:
        """The smallest noise multiplier for `rounds_left` more releases of `steps` Poisson steps
        each.

        With them the run's own events stay within `epsilon_run` at `delta` (the site's own by
        default) and the whole ledger within the site's budget. 0.0 for an infinite `epsilon_run`
        where unprotected releases are allowed. Raises BudgetError when no noise is enough, or when
        the run's full epsilon does not fit beside what is spent: a run that got much more noise
        than it asked for would look like one that worked.
        """
        entries = self.entries()
        everything, of_run = self._countable(entries, None), self._countable(entries, run)
        if math.isinf(epsilon_run):
            if not self.allow_unprotected:
                raise BudgetError(
                    f"run {run} asks for an infinite epsilon; {self._protection_demand()}"
                )
            return 0.0
        shape = (sample_rate, steps, rounds_left)
        try:
            sigma = noise_multiplier_for(epsilon_run, self._at(delta), *shape, spent=of_run)
        except BudgetError as error:
            raise BudgetError(f"run {run}: {error}") from None
        if math.isinf(self.budget_epsilon):
            return sigma
        planned = Event.poisson_gaussian(sigma, sample_rate, steps * rounds_left)
        total = compose([*everything, planned], self.delta)
        if total <= self.budget_epsilon:
            return sigma
        try:
            fitting = noise_multiplier_for(
                self.budget_epsilon, self.delta, *shape, spent=everything
            )
        except BudgetError as error:
            raise BudgetError(f"{error}; {self._spenders(entries)}") from None
        left = compose(
            [Event.poisson_gaussian(fitting, sample_rate, steps * rounds_left)], self.delta
        )
        raise BudgetError(
            f"budget {self.budget_epsilon:g} at delta {self.delta:g}; {self._spenders(entries)};"
            f" run {run} asks for epsilon {epsilon_run:g}, which would bring the total to"
            f" {total:.4g}; allowed: a run of epsilon {left:.2g} or less, or a larger epsilon_total"
            " at this site"
        )

    def charge(
        self,
        id: str,
        run: str,
        what: str,
        event: Event,
        released: int,
        epsilon_run: float | None = None,
        delta: float | None = None,
    ) -> Charge:
        """Charge `event` and return once the line is on the disk; only then may the release leave.

        An id that is already there is not charged again: its first charge is returned.
        `epsilon_run`, at `delta`, is the run's own cap (none by default). Raises BudgetError, with
        nothing charged, when the run's cap or the site's budget would be passed, and LedgerError
        when the line cannot be written or the id was charged for another run, mechanism or event.
        """
        at = self._at(delta)
        with self._journal.locked() as journal:
            entries = self._entries(journal)
            first = self._find(entries, id, at)
            if first is not None:
                self._check_same(first.entry, run, what, event)
                return first
            self._check_budget(entries, run, what, event, epsilon_run, at)
            when = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")
            new = Entry(id, run, what, when, event, released, self._unit)
            total = compose([*(entry.event for entry in entries), event], at)
            journal.append(asdict(new) | {"event": event.to_dict()})
            return Charge(new, compose([event], at), total, at, repeated=False)

    # --- Rules ------------------------------------------------------------------------------------

    def _at(self, delta: float | None) -> float:
        return self.delta if delta is None else delta

    def _check_budget(
        self,
        entries: Sequence[Entry],
        run: str,
        what: str,
        event: Event,
        epsilon_run: float | None,
        delta: float,
    ) -> None:
        everything, of_run = self._countable(entries, None), self._countable(entries, run)
        if event.kind == "none":
            if not self._may_be_open(what):
                raise BudgetError(
                    f"{what} for run {run} carries no privacy guarantee;"
                    f" {self._protection_demand()}"
                )
            return
        for spent, budget, at, whose in (
            (everything, self.budget_epsilon, self.delta, "budget"),
            (
                of_run,
                math.inf if epsilon_run is None else epsilon_run,
                delta,
                f"budget of run {run}:",
            ),
        ):
            after = compose([*spent, event], at)
            if after > budget:
                listed = (
                    entries
                    if spent is everything
                    else [entry for entry in entries if entry.run == run]
                )
                raise BudgetError(
                    f"{whose} {budget} at delta {at:g}; {self._spenders(listed, at)}; this release"
                    f" ({what} for run {run}) would bring it to {after:.4g}; allowed: at most"
                    f" {budget:g}, {_would_fit(event, spent, budget, at)}"
                )

    def _countable(self, entries: Sequence[Entry], run: str | None) -> list[Event]:
        """The protected events (of one run, or all). Raises BudgetError when an unprotected one
        forbids a total."""
        unprotected = next(
            (
                entry
                for entry in entries
                if entry.event.kind == "none" and not self._may_be_open(entry.what)
            ),
            None,
        )
        if unprotected is not None:
            raise BudgetError(
                f"the ledger holds an unprotected release ({unprotected.what} for run"
                f" {unprotected.run}, {unprotected.time}), so its total is infinite;"
                f" {self._protection_demand()}"
            )
        return [
            entry.event
            for entry in entries
            if entry.event.kind != "none" and run in (None, entry.run)
        ]

    def _may_be_open(self, what: str) -> bool:
        return self.allow_unprotected or what in self._unprotected

    def _protection_demand(self) -> str:
        return (
            f"allowed: epsilon up to {self.budget_epsilon:g}, unless the site's policy sets"
            " allow_unprotected"
        )

    def _spenders(self, entries: Sequence[Entry], delta: float | None = None) -> str:
        at = self._at(delta)
        total = compose([entry.event for entry in entries if entry.event.kind != "none"], at)
        rows = [
            (compose([entry.event for entry in group], at), what, run, len(group))
            for (run, what), group in _by_spender(entries).items()
        ]
        if not rows:
            return "spent 0"
        rows.sort(key=lambda row: -row[0])
        named = [
            f"{epsilon:.4g} on {what} for run {run} ({count} release{'s' * (count > 1)})"
            for epsilon, what, run, count in rows[:_NAMED]
        ]
        rest = [f"and {len(rows) - _NAMED} smaller"] * (len(rows) > _NAMED)
        return f"spent {total:.4g}: {', '.join(named + rest)}" + " (composed, not added)" * (
            len(rows) > 1
        )

    @staticmethod
    def _check_same(first: Entry, run: str, what: str, event: Event) -> None:
        if (first.run, first.what, first.event) != (run, what, event):
            raise LedgerError(
                f"charge {first.id}: found {what} for run {run} with {event.to_dict()}, but this id"
                f" was charged on {first.time} for {first.what} of run {first.run} with"
                f" {first.event.to_dict()}; nothing was released; repeat exactly what was paid for,"
                " or use a new id"
            )

    def _find(self, entries: Sequence[Entry], id: str, delta: float) -> Charge | None:
        for number, entry in enumerate(entries, start=1):
            if entry.id == id:
                total = compose([other.event for other in entries[:number]], delta)
                return Charge(entry, compose([entry.event], delta), total, delta, repeated=True)
        return None

    def _entries(self, journal: OpenJournal) -> list[Entry]:
        entries = []
        for number, line in enumerate(journal.entries, start=1):
            try:
                entry = _entry(line)
            except (ValueError, TypeError, KeyError) as error:
                raise LedgerError(
                    f"{self.path}, line {number}: is no charge this version knows ({error});"
                    " nothing was released; upgrade, or restore it"
                ) from None
            if entry.unit != self._unit and entry.event.kind != "none":
                raise LedgerError(
                    f"{self.path}, line {number}: was charged for each {entry.unit}, and the site's"
                    f" policy has unit {self._unit}; they do not add up; nothing was released; set"
                    f" unit {entry.unit} again, or give the site a new folder"
                )
            entries.append(entry)
        return entries


def _entry(line: dict[str, Any]) -> Entry:
    unit = line.get("unit", "record")  # ledgers older than the choice
    return Entry(
        line["id"],
        line["run"],
        line["what"],
        line["time"],
        Event.from_dict(line["event"]),
        line["released"],
        unit,
    )


def _by_spender(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.run, entry.what), []).append(entry)
    return groups


def _would_fit(event: Event, spent: Sequence[Event], budget: float, delta: float) -> str:
    """The noise with which the same release fits: a plain Gaussian is a Poisson one of sample rate
    1."""
    try:
        sigma = noise_multiplier_for(
            budget, delta, event.sample_rate, event.steps * event.count, spent=spent
        )
    except BudgetError:
        return "which no noise reaches: nothing is left"
    return f"which noise multiplier {sigma:g} instead of {event.noise_multiplier:g} would keep"
