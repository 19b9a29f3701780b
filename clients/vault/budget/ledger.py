"""The site's privacy ledger: every release is charged to it, on disk, before it leaves, or refused.

The budget is one (epsilon, delta) over all runs and mechanisms, kept against a server that chooses
each plan after seeing the answers to those before (`fedduet.lm.dp.adaptive`). The time in a line is
for people: no rule depends on it, so a clock that is set back changes nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedduet.clients.vault.budget.entry import (
    Entry,
    Kept,
    by_spender,
    kept_digest,
    open_plan,
    plans,
    protected,
    read,
)
from fedduet.clients.vault.budget.journal import Journal, LedgerError, OpenJournal
from fedduet.lm.dp.accounting import BudgetError, Event, compose
from fedduet.lm.dp.adaptive import compose_adaptively, noise_multiplier_on_top, rho_on_top

__all__ = ["BudgetError", "Charge", "Entry", "Ledger", "LedgerError", "SummaryRow"]


@dataclass(frozen=True, kw_only=True)
class Charge:
    """A charge on the disk, with its epsilon alone and that of the ledger up to and including it,
    both at `delta`."""

    entry: Entry
    epsilon: float
    epsilon_total: float  # against a server that adapts: what decides
    epsilon_fixed: float  # had all plans been fixed beforehand: smaller, and no guarantee
    delta: float
    head: str  # the check of its line, to which everything before is chained
    repeated: bool  # the id was charged before; nothing was charged now


@dataclass(frozen=True, kw_only=True)
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
        """All charges, oldest first."""
        with self._journal.locked() as journal:
            return self._entries(journal)

    def events(self) -> list[Event]:
        """The events of all charges, oldest first, one for each release that was asked for."""
        return [entry.event for entry in self.entries()]

    def plans(self) -> list[Event]:
        """What is spent, as plans with all their rounds, oldest first."""
        return plans(self.entries())

    def heads(self) -> set[str]:
        """The checks of all lines: each receipt of this ledger names one."""
        with self._journal.locked() as journal:
            return set(journal.checks)

    def spent(self, delta: float | None = None) -> float:
        """Epsilon of the whole ledger at `delta` (default: the site's own), against a server that
        adapts; infinite once an unprotected release is in."""
        return compose_adaptively(self.plans(), self._at(delta))

    def spent_if_fixed(self, delta: float | None = None) -> float:
        """The same had all plans been fixed beforehand: for comparison, it decides nothing."""
        return compose(self.plans(), self._at(delta))

    def find(self, id: str, delta: float | None = None) -> Charge | None:
        """The charge with this id, or None. A vault that starts again asks before it plans, and
        reuses that event."""
        with self._journal.locked() as journal:
            return self._find(journal, id, self._at(delta))

    def planned(self, run: str, what: str) -> Event | None:
        """The event of a plan of the run that is paid for and has releases left, or None: what a
        further round has to be."""
        plan = open_plan(self.entries(), run, what)
        return None if plan is None else plan.event

    def summary(self) -> list[SummaryRow]:
        """One row for each run and mechanism, in order of first appearance; the last row's
        `cumulated` is `spent()`."""
        rows: list[SummaryRow] = []
        above: list[Entry] = []
        for (run, what), group in by_spender(self.entries()).items():
            above += group
            rows.append(
                SummaryRow(
                    run=run,
                    what=what,
                    releases=len(group),
                    released=sum(entry.released for entry in group),
                    epsilon=compose_adaptively(plans(group), self.delta),
                    cumulated=compose_adaptively(plans(above), self.delta),
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
        """The smallest noise multiplier for a plan of `rounds_left` more releases of `steps`
        Poisson steps each.

        With it the run's own plans stay within `epsilon_run` at `delta` (the site's own by
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
            sigma = noise_multiplier_on_top(epsilon_run, self._at(delta), *shape, spent=of_run)
        except BudgetError as error:
            raise BudgetError(f"run {run}: {error}") from None
        if math.isinf(self.budget_epsilon):
            return sigma
        planned = Event.poisson_gaussian(sigma, sample_rate, steps * rounds_left)
        total = compose_adaptively([*everything, planned], self.delta)
        if total <= self.budget_epsilon:
            return sigma
        try:
            fitting = noise_multiplier_on_top(
                self.budget_epsilon, self.delta, *shape, spent=everything
            )
        except BudgetError as error:
            raise BudgetError(f"{error}; {self._spenders(entries, run)}") from None
        room = compose(
            [Event.poisson_gaussian(fitting, sample_rate, steps * rounds_left)], self.delta
        )
        raise BudgetError(
            f"budget {self.budget_epsilon:g} at delta {self.delta:g};"
            f" {self._spenders(entries, run)}; run {run} asks for epsilon {epsilon_run:g}, which"
            f" would bring the total to {total:.4g}; allowed: a run of epsilon {room:.2g} or less,"
            " or a larger epsilon_total at this site"
        )

    def plan_rho(
        self, epsilon_run: float, run: str, rounds_left: int = 1, delta: float | None = None
    ) -> float:
        """The largest rho with which a plan of `rounds_left` zCDP releases keeps what `plan` keeps;
        infinite for an infinite `epsilon_run`, and the same errors."""
        entries = self.entries()
        everything, of_run = self._countable(entries, None), self._countable(entries, run)
        if math.isinf(epsilon_run):
            if not self.allow_unprotected:
                raise BudgetError(
                    f"run {run} asks for an infinite epsilon; {self._protection_demand()}"
                )
            return math.inf
        try:
            rho = rho_on_top(epsilon_run, self._at(delta), rounds_left, of_run)
        except BudgetError as error:
            raise BudgetError(f"run {run}: {error}") from None
        plan = Event.zcdp(rho).times(rounds_left)
        total = compose_adaptively([*everything, plan], self.delta)
        if total > self.budget_epsilon:
            raise BudgetError(
                f"budget {self.budget_epsilon:g} at delta {self.delta:g};"
                f" {self._spenders(entries, run)}; run {run} asks for epsilon {epsilon_run:g},"
                f" which would bring the total to {total:.4g}; allowed: a run of a smaller epsilon,"
                " or a larger epsilon_total at this site"
            )
        return rho

    def charge(
        self,
        id: str,
        run: str,
        what: str,
        event: Event,
        released: int,
        epsilon_run: float | None = None,
        delta: float | None = None,
        rounds: int = 1,
        coins: str = "",
    ) -> Charge:
        """Charge `event` and return once the line is on the disk; only then may the release leave.

        `rounds` releases of it are paid for at once, as one plan: later ids of this run, mechanism
        and event take their release from it. An id that is already there is not charged again: its
        first charge is returned, once for what was never kept and only for the same `coins` (what
        the mechanism draws from: repeated with them it shows nothing new). `epsilon_run`, at
        `delta`, is the run's own cap (none by default). Raises BudgetError, with nothing charged,
        when the run's cap or the site's budget would be passed, and LedgerError when the line
        cannot be written or the id was charged for another run, mechanism, event or coins, or when
        what was kept of it is asked for anew.
        """
        at = self._at(delta)
        with self._journal.locked() as journal:
            entries = self._entries(journal)
            first = self._find(journal, id, at)
            if first is not None:
                self._check_same(first.entry, run, what, event)
                if kept_digest(journal.entries, id) is not None:
                    raise LedgerError(
                        f"charge {id}: its release was made on {first.entry.time} and is gone; a"
                        " second one would be drawn anew, which nobody paid for; nothing was"
                        " released; put the kept file back, or use a new id"
                    )
                if first.entry.coins != coins:
                    raise LedgerError(
                        f"charge {id}: was begun on {first.entry.time} for another request, or with"
                        " coins that are gone; other ones would be a second release, which nobody"
                        " paid for; nothing was released; use a new id"
                    )
                return first
            plan = open_plan(entries, run, what)
            if plan is not None and plan.event == event:
                self._check_budget(entries, run, what, None, epsilon_run, at)
                paid, part_of = 0, plan.id
            else:
                self._check_budget(entries, run, what, event.times(rounds), epsilon_run, at)
                paid, part_of = rounds, None
            when = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds")
            new = Entry(
                id=id,
                run=run,
                what=what,
                time=when,
                event=event,
                released=released,
                unit=self._unit,
                coins=coins,
                rounds=paid,
                part_of=part_of,
            )
            journal.append(new.to_line())
            return self._charge([*entries, new], new, at, journal.last_check, repeated=False)

    # --- Rules ------------------------------------------------------------------------------------

    def _at(self, delta: float | None) -> float:
        return self.delta if delta is None else delta

    def _check_budget(
        self,
        entries: Sequence[Entry],
        run: str,
        what: str,
        plan: Event | None,
        epsilon_run: float | None,
        delta: float,
    ) -> None:
        """`plan` fits on top of `entries`, or, None, these alone fit."""
        everything, of_run = self._countable(entries, None), self._countable(entries, run)
        if plan is not None and plan.kind == "none":
            if not self._may_be_open(what):
                raise BudgetError(
                    f"{what} for run {run} carries no privacy guarantee;"
                    f" {self._protection_demand()}"
                )
            return
        new = [] if plan is None else [plan]
        for spent, budget, at, whose in (
            (everything, self.budget_epsilon, self.delta, "budget"),
            (
                of_run,
                math.inf if epsilon_run is None else epsilon_run,
                delta,
                f"budget of run {run}:",
            ),
        ):
            after = compose_adaptively([*spent, *new], at)
            if after > budget:
                listed = (
                    entries
                    if spent is everything
                    else [entry for entry in entries if entry.run == run]
                )
                raise BudgetError(
                    f"{whose} {budget} at delta {at:g}; {self._spenders(listed, run, at)}; this"
                    f" release ({what} for run {run}) would bring it to {after:.4g}; allowed: at"
                    f" most {budget:g}, {_would_fit(plan, spent, budget, at)}"
                )

    def _countable(self, entries: Sequence[Entry], run: str | None) -> list[Event]:
        """The protected plans (of one run, or all). Raises BudgetError when an unprotected release
        forbids a total."""
        if any(
            entry.event.kind == "none" and not self._may_be_open(entry.what) for entry in entries
        ):
            raise BudgetError(
                "the ledger holds an unprotected release, so its total is infinite;"
                f" {self._protection_demand()}"
            )
        return protected([entry for entry in entries if run in (None, entry.run)])

    def _may_be_open(self, what: str) -> bool:
        return self.allow_unprotected or what in self._unprotected

    def _protection_demand(self) -> str:
        return (
            f"allowed: epsilon up to {self.budget_epsilon:g}, unless the site's policy sets"
            " allow_unprotected"
        )

    def _spenders(self, entries: Sequence[Entry], run: str, delta: float | None = None) -> str:
        """What was spent: by mechanism of the run that asks, and by all others in one number, since
        it leaves with a refusal."""
        at = self._at(delta)
        groups = by_spender([entry for entry in entries if entry.run == run])
        rows = [
            f"{compose_adaptively(protected(group), at):.4g} on {what} for run {run}"
            f" ({len(group)} release{'s' * (len(group) > 1)})"
            for (_, what), group in groups.items()
        ]
        others = protected([entry for entry in entries if entry.run != run])
        if others:
            rows.append(f"{compose_adaptively(others, at):.4g} for other runs")
        if not rows:
            return "spent 0"
        total = compose_adaptively(protected(entries), at)
        return f"spent {total:.4g}: {', '.join(rows)}" + " (composed, not added)" * (len(rows) > 1)

    @staticmethod
    def _check_same(first: Entry, run: str, what: str, event: Event) -> None:
        if (first.run, first.what, first.event) != (run, what, event):
            raise LedgerError(
                f"charge {first.id}: found {what} for run {run} with {event.to_dict()}, but this id"
                f" was charged on {first.time} for {first.what} of run {first.run} with"
                f" {first.event.to_dict()}; nothing was released; repeat exactly what was paid for,"
                " or use a new id"
            )

    def _find(self, journal: OpenJournal, id: str, delta: float) -> Charge | None:
        charges = self._charges(journal)
        for number, (entry, check) in enumerate(charges, start=1):
            if entry.id == id:
                until = [earlier for earlier, _ in charges[:number]]
                return self._charge(until, entry, delta, check, repeated=True)
        return None

    @staticmethod
    def _charge(
        entries: Sequence[Entry], last: Entry, delta: float, head: str, repeated: bool
    ) -> Charge:
        spent = plans(entries)
        return Charge(
            entry=last,
            epsilon=compose([last.event], delta),
            epsilon_total=compose_adaptively(spent, delta),
            epsilon_fixed=compose(spent, delta),
            delta=delta,
            head=head,
            repeated=repeated,
        )

    def _charges(self, journal: OpenJournal) -> list[tuple[Entry, str]]:
        """Every charge with the check of its line."""
        found = []
        for number, line in enumerate(journal.entries, start=1):
            try:
                entry = read(line)
            except (ValueError, TypeError, KeyError) as error:
                raise LedgerError(
                    f"{self.path}, line {number}: is no charge this version knows ({error});"
                    " nothing was released; upgrade, or restore it"
                ) from None
            if isinstance(entry, Kept):
                continue
            if entry.unit != self._unit and entry.event.kind != "none":
                raise LedgerError(
                    f"{self.path}, line {number}: was charged for each {entry.unit}, and the site's"
                    f" policy has unit {self._unit}; they do not add up; nothing was released; set"
                    f" unit {entry.unit} again, or give the site a new folder"
                )
            found.append((entry, journal.checks[number - 1]))
        return found

    def _entries(self, journal: OpenJournal) -> list[Entry]:
        return [entry for entry, _ in self._charges(journal)]


def _would_fit(plan: Event | None, spent: Sequence[Event], budget: float, delta: float) -> str:
    """The noise with which the same plan fits: a plain Gaussian is a Poisson one of sample rate
    1."""
    if plan is None:
        return "which less than was paid for would not be"
    try:
        if plan.kind == "zcdp":
            return (
                f"which rho {rho_on_top(budget, delta, 1, spent):g} instead of {plan.rho:g} keeps"
            )
        sigma = noise_multiplier_on_top(
            budget, delta, plan.sample_rate, plan.steps * plan.count, spent=spent
        )
    except BudgetError:
        return "which no noise reaches: nothing is left"
    return f"which noise multiplier {sigma:g} instead of {plan.noise_multiplier:g} would keep"
