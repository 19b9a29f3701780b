"""The ledger on a real disk with real processes: what was acknowledged is there, what does not fit
is refused, damage is named."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from fedduet.clients.vault.budget.journal import START, chained
from fedduet.clients.vault.budget.ledger import BudgetError, Ledger, LedgerError
from fedduet.lm.dp.accounting import Event, compose, distribution_of, noise_multiplier_for
from fedduet.lm.dp.adaptive import compose_adaptively
from scipy.stats import norm

DELTA = 1e-5
RATE, STEPS = 0.064, 157
ROOT = Path(__file__).parents[4]
VOTE = Event.gaussian(20.0)  # epsilon about 0.16: cheap to compose


def sgd(sigma: float) -> Event:
    return Event.poisson_gaussian(sigma, RATE, STEPS)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "site" / "ledger.jsonl", 8.0, DELTA)


def lines(ledger: Ledger) -> list[dict]:
    return [json.loads(line) for line in ledger.path.read_text().splitlines()]


def process(code: str, *arguments: object) -> subprocess.Popen:
    """A Python process that runs `code` with the ledger's names imported and its arguments in
    `sys.argv`."""
    head = (
        "import os, signal, sys, time\nfrom fedduet.clients.vault.budget.ledger import *\nfrom"
        " fedduet.lm.dp.accounting import Event\n"
    )
    head += "VOTE = Event.gaussian(20.0)\nledger = Ledger(sys.argv[1], 8.0, 1e-5)\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# --- Charging -------------------------------------------------------------------------------------


def test_a_charge_is_a_line_chained_to_the_one_before(ledger):
    assert ledger.entries() == [] and ledger.spent() == 0.0
    first = ledger.charge("a", "run A", "dp-sgd", sgd(2.0), released=40)
    second = ledger.charge("b", "run B", "votes", VOTE, released=7)
    assert first.epsilon == first.epsilon_total == pytest.approx(compose([sgd(2.0)], DELTA))
    assert second.epsilon_total == pytest.approx(compose_adaptively([sgd(2.0), VOTE], DELTA))
    assert second.epsilon_fixed == pytest.approx(compose([sgd(2.0), VOTE], DELTA))
    assert second.epsilon_total < first.epsilon + second.epsilon  # composed, not added
    one, two = lines(ledger)
    assert ",".join(one) == ("id,run,what,time,event,released,unit,rounds,part_of,coins,check")
    assert (first.head, second.head) == (one["check"], two["check"])
    assert one["event"] == {
        "kind": "poisson_gaussian",
        "noise_multiplier": 2.0,
        "sample_rate": RATE,
        "steps": STEPS,
    }
    check_one, check_two = one.pop("check"), two.pop("check")
    assert check_one == chained(START, one) and check_two == chained(check_one, two)
    again = Ledger(ledger.path, 8.0, DELTA)
    assert again.entries() == [first.entry, second.entry] and again.spent() == second.epsilon_total
    assert again.spent(1e-7) > again.spent()


def test_a_repeated_id_pays_once_and_gets_the_first_answer(ledger):
    first = ledger.charge("a", "run", "dp-sgd", sgd(2.0), released=40)
    ledger.charge("b", "run", "dp-sgd", sgd(2.0), released=40)
    again = ledger.charge("a", "run", "dp-sgd", sgd(2.0), released=40)
    assert again.repeated and not first.repeated
    assert (again.entry, again.epsilon, again.epsilon_total) == (
        first.entry,
        first.epsilon,
        first.epsilon_total,
    )
    assert len(lines(ledger)) == 2
    assert ledger.find("a") == again and ledger.find("c") is None


def test_a_repeated_id_for_something_else_is_refused(ledger):
    ledger.charge("a", "run", "dp-sgd", sgd(2.0), released=40)
    with pytest.raises(
        LedgerError,
        match=r"charge a: .*'noise_multiplier': 1\.0.* was charged .*'noise_multiplier': 2\.0",
    ):
        ledger.charge("a", "run", "dp-sgd", sgd(1.0), released=40)
    assert len(lines(ledger)) == 1


def test_a_clock_set_back_changes_nothing(tmp_path):
    times = iter([1.8e9, 0.0])
    ledger = Ledger(tmp_path / "ledger.jsonl", 8.0, DELTA, clock=lambda: next(times))
    ledger.charge("a", "run", "votes", VOTE, 1)
    ledger.charge("b", "run", "votes", VOTE, 1)
    assert [entry.time for entry in ledger.entries()] == [
        "2027-01-15T08:00:00+00:00",
        "1970-01-01T00:00:00+00:00",
    ]
    assert ledger.spent() == pytest.approx(compose_adaptively([VOTE] * 2, DELTA))


# --- The budget -----------------------------------------------------------------------------------


def test_a_plan_is_paid_for_with_its_first_round_and_ends_just_below_the_run_epsilon(ledger):
    sigma = ledger.plan(4.0, "run", RATE, STEPS, rounds_left=3)
    assert sigma == noise_multiplier_for(4.0, DELTA, RATE, STEPS, 3)
    for round in range(3):
        assert ledger.planned("run", "dp-sgd") == (sgd(sigma) if round else None)
        charge = ledger.charge(
            f"m{round}", "run", "dp-sgd", sgd(sigma), 10, epsilon_run=4.0, rounds=3 - round
        )
        # the rounds to come are spent with the first
        assert 3.99 < charge.epsilon_total == ledger.spent() <= 4.0
        assert charge.epsilon_total == compose([sgd(sigma)] * 3, DELTA)
        assert charge.epsilon == compose([sgd(sigma)], DELTA)
    assert ledger.plans() == [Event.poisson_gaussian(sigma, RATE, 3 * STEPS)]
    assert [line["part_of"] for line in lines(ledger)] == [None, "m0", "m0"]
    assert ledger.planned("run", "dp-sgd") is None
    with pytest.raises(
        BudgetError, match=r"^run run: budget 3.9 at delta 1e-05: \S+ is spent already"
    ):
        ledger.plan(3.9, "run", RATE, STEPS)
    with pytest.raises(BudgetError, match=r"budget of run run: 4\.0 .*\(3 releases\)"):
        ledger.charge("m3", "run", "dp-sgd", sgd(sigma), 10, epsilon_run=4.0)


def test_a_plan_pays_for_its_own_run_mechanism_and_event_alone(ledger):
    ledger.charge("a", "run", "votes", VOTE, 1, rounds=2)
    for number, (run, what, event) in enumerate(
        [("other", "votes", VOTE), ("run", "scores", VOTE), ("run", "votes", Event.gaussian(19.0))]
    ):
        before = ledger.spent()
        ledger.charge(f"x{number}", run, what, event, 1)
        assert ledger.spent() > before
    before = ledger.spent()
    ledger.charge("b", "run", "votes", VOTE, 1)
    assert ledger.spent() == before
    ledger.charge("c", "run", "votes", VOTE, 1)  # both of the plan were taken
    assert ledger.spent() > before


def test_rounds_to_come_are_not_lost_to_another_run(ledger):
    """What is left beside a plan is left after all its rounds, so the last is never refused."""
    sigma = ledger.plan(6.0, "A", RATE, STEPS, 2)
    ledger.charge("a0", "A", "dp-sgd", sgd(sigma), 10, epsilon_run=6.0, rounds=2)
    with pytest.raises(BudgetError, match="run B asks for epsilon 6"):
        ledger.plan(6.0, "B", RATE, STEPS)
    ledger.charge("b", "B", "dp-sgd", sgd(ledger.plan(2.0, "B", RATE, STEPS)), 10)
    assert ledger.charge("a1", "A", "dp-sgd", sgd(sigma), 10, epsilon_run=6.0).epsilon_total <= 8


def test_a_run_that_asks_for_less_than_its_plan_paid_is_refused(ledger):
    sigma = ledger.plan(4.0, "A", RATE, STEPS, 2)
    ledger.charge("a0", "A", "dp-sgd", sgd(sigma), 10, epsilon_run=4.0, rounds=2)
    for stricter in ({"epsilon_run": 3.0}, {"epsilon_run": 4.0, "delta": 1e-7}):
        with pytest.raises(BudgetError, match=r"budget of run A: .* which less than was paid"):
            ledger.charge("a1", "A", "dp-sgd", sgd(sigma), 10, **stricter)
    with pytest.raises(BudgetError, match=r"budget 3\.5 "):  # the site has become stricter
        Ledger(ledger.path, 3.5, DELTA).charge("a1", "A", "dp-sgd", sgd(sigma), 10)


def test_a_stricter_delta_of_the_request_takes_more_noise(ledger):
    plain, strict = (ledger.plan(4.0, "A", RATE, STEPS, delta=at) for at in (None, 1e-8))
    assert strict == noise_multiplier_for(4.0, 1e-8, RATE, STEPS) > 1.1 * plain
    with pytest.raises(BudgetError, match=r"budget of run A: 4\.0 at delta 1e-08"):
        ledger.charge("a", "A", "dp-sgd", sgd(plain), 10, epsilon_run=4.0, delta=1e-8)
    charge = ledger.charge("a", "A", "dp-sgd", sgd(strict), 10, epsilon_run=4.0, delta=1e-8)
    assert 3.99 < charge.epsilon <= 4 and charge.delta == 1e-8


def test_a_server_that_adapts_does_not_get_more_than_the_budget(ledger):
    """Votes at epsilon 4, then votes or DP-SGD, whichever the first answer makes worse. Each pair
    is 8 at 1e-5 had it been fixed beforehand; chosen by the answer it is not, and is refused."""
    first = Event.gaussian(noise_multiplier_for(4.0, DELTA, 1.0, 1))
    one = first.noise_multiplier

    def least_noise(event) -> Event:
        low, high = 0.3, 30.0
        while high / low > 1.0005:
            middle = math.sqrt(low * high)
            fits = compose([first, event(middle)], DELTA) <= 8.0
            low, high = (low, middle) if fits else (middle, high)
        return event(high)

    x = np.linspace(-12 * one, 1 + 12 * one, 2001)
    losses = (x - 0.5) / one**2  # of the answer x, by a record that is there

    def worst_delta(branches: list[Event]) -> float:
        """Of a server that takes after each x the branch that then shows more."""
        rest = [
            distribution_of(branch).get_delta_for_epsilon(8.0 - losses[::-1])[::-1]
            for branch in branches
        ]
        return float(np.trapezoid(norm.pdf(x, 1, one) * np.max(rest, axis=0), x))

    def rare(sigma: float) -> Event:
        return Event.poisson_gaussian(sigma, 0.0256, 117)

    old = [least_noise(Event.gaussian), least_noise(rare)]
    assert all(7.98 < compose([first, branch], DELTA) <= 8 for branch in old)
    for branch in old:
        assert worst_delta([branch]) == pytest.approx(DELTA, rel=0.03)
    assert worst_delta(old) > 1.3 * DELTA  # the promise would be broken
    ledger.charge("a", "A", "votes", first, 1)
    for branch in old:
        with pytest.raises(BudgetError, match=r"budget 8\.0"):
            ledger.charge("b", "A", "any", branch, 1)
    new = [
        Event.gaussian(ledger.plan(8.0, "A", 1.0, 1)),
        rare(ledger.plan(8.0, "A", 0.0256, 117)),
    ]
    assert 0.8 * DELTA < worst_delta(new) <= DELTA
    assert ledger.charge("b", "A", "any", new[1], 1).epsilon_total <= 8


def test_a_ledger_of_an_older_version_is_read(ledger):
    """Lines without unit, plans or coins, and only one side file: each line is a plan."""
    ledger.path.parent.mkdir()
    check, text = START, ""
    for name in "ab":
        old = {"id": name, "run": "r", "what": "votes", "time": "2026-01-01T00:00:00+00:00"}
        old |= {"event": VOTE.to_dict(), "released": 3}
        check = chained(check, old)
        text += json.dumps(old | {"check": check}, separators=(",", ":")) + "\n"
    ledger.path.write_text(text)
    ledger.path.with_suffix(".lock").write_text(f"{2:012d} {check}\n")
    assert ledger.plans() == [VOTE, VOTE] == ledger.events()
    assert ledger.spent() == compose_adaptively([VOTE, VOTE], DELTA)
    assert ledger.path.with_suffix(".head").read_text().split() == [f"{2:012d}", check]
    assert ledger.charge("a", "r", "votes", VOTE, 3).repeated
    assert not ledger.charge("c", "r", "votes", VOTE, 3).repeated


def test_a_second_run_fits_beside_the_first_or_is_refused_in_advance(ledger):
    ledger.charge("a", "A", "dp-sgd", sgd(ledger.plan(6.0, "A", RATE, STEPS)), 10)
    with pytest.raises(
        BudgetError,
        match=(
            r"spent \S+: \S+ for other runs; run B asks for epsilon 6, .* allowed: a run of epsilon"
            r" (\S+) or less"
        ),
    ) as no:
        ledger.plan(6.0, "B", RATE, STEPS)
    left = float(str(no.value).split("a run of epsilon ")[1].split()[0])
    assert 2.0 < left < 6  # composed: more than 8 - 6 is left
    ledger.charge("b", "B", "dp-sgd", sgd(ledger.plan(left - 0.1, "B", RATE, STEPS)), 10)
    assert 7.8 < ledger.spent() <= 8.0
    rows = ledger.summary()
    assert [(row.run, row.what, row.releases, row.released) for row in rows] == [
        ("A", "dp-sgd", 1, 10),
        ("B", "dp-sgd", 1, 10),
    ]
    assert (
        rows[0].cumulated == rows[0].epsilon
        and rows[1].cumulated == ledger.spent() < rows[0].epsilon + rows[1].epsilon
    )


def test_a_refusal_says_what_was_spent_on_what_and_what_would_fit(ledger):
    ledger.charge("a", "A", "dp-sgd", sgd(1.1), 10)
    ledger.charge("b", "B", "votes", Event.gaussian(4.0, 5), 10)
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetError) as refused:
        ledger.charge("c", "A", "dp-sgd", sgd(0.9), 10)
    text = str(refused.value)
    spent, after = ledger.spent(), compose_adaptively([*ledger.plans(), sgd(0.9)], DELTA)
    # of other runs nothing but their sum, since a refusal leaves the site
    assert text.startswith(
        f"budget 8.0 at delta 1e-05; spent {spent:.4g}: {compose([sgd(1.1)], DELTA):.4g} on dp-sgd"
        f" for run A (1 release), {compose([Event.gaussian(4.0, 5)], DELTA):.4g} for other runs"
        " (composed, not added)"
    )
    assert "run B" not in text and "votes" not in text
    assert (
        f"this release (dp-sgd for run A) would bring it to {after:.4g}; allowed: at most 8, which"
        " noise multiplier " in text
    )
    fitting = float(re.search(r"noise multiplier (\S+) instead of 0.9 would keep", text).group(1))
    assert ledger.path.read_bytes() == before
    assert 7.98 < ledger.charge("c", "C", "dp-sgd", sgd(fitting), 10).epsilon_total <= 8.0


def test_unprotected_releases_need_leave_and_make_the_total_infinite(tmp_path, ledger):
    with pytest.raises(
        BudgetError, match=r"dp-sgd for run A carries no privacy guarantee; .*allow_unprotected"
    ):
        ledger.charge("a", "A", "dp-sgd", Event.none(), 1)
    with pytest.raises(BudgetError, match="asks for an infinite epsilon"):
        ledger.plan(math.inf, "A", RATE, STEPS)
    assert ledger.entries() == []
    open_one = Ledger(ledger.path, 8.0, DELTA, allow_unprotected=True)
    assert open_one.plan(math.inf, "A", RATE, STEPS) == 0.0
    assert open_one.charge("a", "A", "none", Event.none(), 1).epsilon_total == math.inf
    assert open_one.spent() == math.inf
    open_one.charge("b", "B", "votes", VOTE, 1)  # the budget goes on for what is protected ...
    with pytest.raises(BudgetError, match=r"budget 8\.0"):
        open_one.charge("c", "B", "votes", Event.gaussian(0.3), 1)
    # ... and nothing passes without leave
    with pytest.raises(BudgetError, match="holds an unprotected release, so"):
        ledger.charge("d", "B", "votes", VOTE, 1)


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, DELTA), (-1.0, DELTA), (math.nan, DELTA), (math.inf, DELTA), (8.0, 0.0), (8.0, 1.0)],
)
def test_a_budget_that_is_none(tmp_path, epsilon, delta):
    with pytest.raises(ValueError, match="found"):
        Ledger(tmp_path / "ledger.jsonl", epsilon, delta)


# --- Kills, crashes and two writers ---------------------------------------------------------------


def test_every_acknowledged_charge_survives_kill_9(ledger):
    code = """
        for number in range(10_000):
            ledger.charge(f"{sys.argv[2]}-{number}", "run", "votes", Event.gaussian(1e4), 1)
            print(f"{sys.argv[2]}-{number}", flush=True)
    """
    acknowledged = []
    for attempt in range(3):
        child = process(code, ledger.path, attempt)
        for _ in range(5 + 7 * attempt):
            acknowledged.append(child.stdout.readline().strip())
        child.kill()
        acknowledged += child.stdout.read().split("\n")[:-1]
        child.wait()
        child.stderr.close()
        child.stdout.close()
    found = [entry.id for entry in ledger.entries()]
    assert len(acknowledged) >= 36 and set(acknowledged) <= set(found)
    # at most the one charge in hand at each kill
    assert len(found) == len(set(found)) <= len(acknowledged) + 3


@pytest.mark.parametrize(
    ("patch", "lines_left", "torn"),
    [
        # in the middle of the line
        ("os.write = lambda to, data: (write(to, data[: len(data) // 2]), die())", 1, True),
        # before its newline
        ("os.write = lambda to, data: (write(to, data[:-1]), die())", 1, True),
        ("os.fsync = lambda to: die()", 2, False),  # the whole line is there: it counts
    ],
)
def test_a_kill_in_the_middle_of_a_charge(ledger, patch, lines_left, torn):
    ledger.charge("a", "run", "votes", VOTE, 1)
    die = "write = os.write\ndef die(): os.kill(os.getpid(), signal.SIGKILL)\n"
    child = process(
        die + patch + '\nledger.charge("b", "run", "votes", VOTE, 1)\nprint("acknowledged")',
        ledger.path,
    )
    out, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL and out == ""
    assert len(ledger.entries()) == lines_left
    aside = ledger.path.with_suffix(".torn")
    assert aside.exists() == torn
    if torn:
        assert aside.read_bytes().startswith(b'{"id":"b","run":"run"')
    retried = ledger.charge("b", "run", "votes", VOTE, 1)
    assert retried.repeated == (not torn)
    assert [entry.id for entry in ledger.entries()] == ["a", "b"]


def test_two_processes_never_pass_the_budget_together(ledger):
    vote = Event.gaussian(4.0)
    room = next(
        count for count in range(1, 99) if compose_adaptively([vote] * (count + 1), DELTA) > 8.0
    )
    code = """
        done = 0
        while True:
            try:
                ledger.charge(f"{sys.argv[2]}-{done}", sys.argv[2], "votes", Event.gaussian(4.0), 1)
            except BudgetError:
                break
            done += 1
            time.sleep(0.02)
        print(done)
    """
    children = [process(code, ledger.path, name) for name in ("left", "right")]
    counts = [int(child.communicate(timeout=60)[0]) for child in children]
    assert sum(counts) == room == len(ledger.entries())
    assert ledger.spent() <= 8.0 < compose_adaptively([*ledger.plans(), vote], DELTA)
    assert min(counts) >= 1


def test_threads_of_one_process_exclude_each_other(ledger):
    def work(name: str) -> None:
        for number in range(10):
            ledger.charge(f"{name}-{number}", "run", "votes", Event.gaussian(100.0), 1)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len({entry.id for entry in ledger.entries()}) == 30


# --- Damage ---------------------------------------------------------------------------------------


def three(ledger: Ledger) -> list[bytes]:
    for name in "abc":
        ledger.charge(name, "run", "votes", VOTE, 1)
    return ledger.path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda rows: [rows[0], rows[1].replace(b"20.0", b"90.0"), rows[2]], 2),  # an edit
        (lambda rows: [rows[0], rows[2]], 2),  # a line taken out
        (lambda rows: [rows[1], rows[0], rows[2]], 1),  # moved
        (lambda rows: [rows[0], b"{\n", rows[2]], 2),  # no JSON in the middle
        # the same values, other bytes
        (lambda rows: [rows[0], rows[1].replace(b",", b", ", 1), rows[2]], 2),
        (lambda rows: [rows[0], rows[1], rows[2][:-20]], 3),  # the end of an acknowledged line
        # an edit of the last
        (lambda rows: [rows[0], rows[1], rows[2].replace(b"20.0", b"90.0")], 3),
        (lambda rows: [rows[0], rows[1]], 3),  # the last line taken out
        (lambda rows: [], 1),  # all of them
    ],
)
def test_damage_is_named_and_nothing_passes(ledger, change, line):
    ledger.path.write_bytes(b"".join(change(three(ledger))))
    damaged = ledger.path.read_bytes()
    for attempt in (
        ledger.spent,
        lambda: ledger.plan(1.0, "run", RATE, STEPS),
        lambda: ledger.charge("d", "run", "votes", VOTE, 1),
    ):
        with pytest.raises(
            LedgerError,
            match=rf"ledger\.jsonl, line {line}: .*nothing was released; restore the ledger",
        ):
            attempt()
    assert ledger.path.read_bytes() == damaged and not ledger.path.with_suffix(".torn").exists()


def test_a_deleted_ledger_is_not_a_new_budget(ledger):
    three(ledger)
    ledger.path.unlink()
    with pytest.raises(LedgerError, match="3 charges were written and 0 are here"):
        ledger.charge("d", "run", "votes", VOTE, 1)


def test_another_valid_ledger_of_equal_length_is_not_the_sites(ledger, tmp_path):
    three(ledger)
    other = Ledger(tmp_path / "other" / "ledger.jsonl", 8.0, DELTA)
    for name in "xyz":
        other.charge(name, "run", "votes", Event.gaussian(500.0), 1)
    ledger.path.write_bytes(other.path.read_bytes())
    with pytest.raises(LedgerError, match="line 3: is not the line that was written last"):
        ledger.spent()


@pytest.mark.parametrize("gone", [".lock", ".head"])
def test_a_side_file_that_is_gone_hides_no_line_that_is_cut_off(ledger, gone):
    rows = three(ledger)
    ledger.path.write_bytes(b"".join(rows[:2]))
    ledger.path.with_suffix(gone).unlink()
    with pytest.raises(LedgerError, match="3 charges were written and 2 are here"):
        ledger.charge("d", "run", "votes", VOTE, 1)
    ledger.path.write_bytes(b"".join(rows))
    assert not ledger.charge("d", "run", "votes", VOTE, 1).repeated
    assert ledger.path.with_suffix(gone).exists()


@pytest.mark.parametrize(
    "torn", [b'{"id":"d","run"', b'{"id":"d","ru\n', b"\0\0\0\0", "é".encode()[:1]]
)
def test_a_torn_last_line_is_set_aside(ledger, torn):
    rows = three(ledger)
    ledger.path.write_bytes(b"".join(rows) + torn)
    assert [entry.id for entry in ledger.entries()] == ["a", "b", "c"]
    assert ledger.path.read_bytes() == b"".join(rows)
    assert ledger.path.with_suffix(".torn").read_bytes() == torn.rstrip(b"\n") + b"\n"
    assert not ledger.charge("d", "run", "votes", VOTE, 1).repeated


# --- Disks that cannot be written -----------------------------------------------------------------


def test_a_full_disk_releases_nothing_and_leaves_the_ledger_whole(ledger):
    """The process may write 20 bytes more to any file: the line is cut short, as on a full disk,
    for root as for anyone."""
    three(ledger)
    before = ledger.path.read_bytes()
    code = """
        import resource
        limit = os.path.getsize(ledger.path) + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            ledger.charge("d", "run", "votes", VOTE, 1)
            print("released")
        except LedgerError as error:
            print(error)
    """
    out, err = process(code, ledger.path).communicate(timeout=60)
    assert "cannot write the ledger (File too large); nothing was released" in out, err
    assert ledger.path.read_bytes() == before
    assert not ledger.charge("d", "run", "votes", VOTE, 1).repeated


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.jsonl").mkdir()
    for path in (
        tmp_path / "file" / "ledger.jsonl",
        tmp_path / "folder.jsonl",
        Path("/proc/ledger.jsonl"),
    ):
        with pytest.raises(
            LedgerError,
            match=(
                rf"{re.escape(str(path))}: cannot open the ledger for writing .*nothing was"
                r" released"
            ),
        ):
            Ledger(path, 8.0, DELTA).charge("a", "run", "votes", VOTE, 1)


def test_a_read_only_file_releases_nothing(tmp_path):
    """A file of /proc is read-only for root too."""
    (tmp_path / "ledger.jsonl").symlink_to("/proc/version")
    with pytest.raises(LedgerError, match="nothing was released"):
        Ledger(tmp_path / "ledger.jsonl", 8.0, DELTA).charge("a", "run", "votes", VOTE, 1)


def test_a_device_is_no_ledger(tmp_path):
    (tmp_path / "ledger.jsonl").symlink_to("/dev/full")
    with pytest.raises(LedgerError, match="no regular file"):
        Ledger(tmp_path / "ledger.jsonl", 8.0, DELTA).charge("a", "run", "votes", VOTE, 1)


def test_leave_for_one_mechanism_is_for_it_alone(tmp_path):
    """Scores without a guarantee, and nothing else; the budget goes on for what is protected, the
    total is infinite."""
    ledger = Ledger(tmp_path / "ledger.jsonl", 8.0, DELTA, unprotected={"scores"})
    assert ledger.charge("a", "run", "scores", Event.none(), released=3).epsilon_total == math.inf
    with pytest.raises(BudgetError, match="weights for run run carries no privacy guarantee"):
        ledger.charge("b", "run", "weights", Event.none(), released=3)
    with pytest.raises(BudgetError, match="asks for an infinite epsilon"):
        ledger.plan(math.inf, "run", RATE, STEPS)
    sigma = ledger.plan(8.0, "run", 1.0, 1)
    charge = ledger.charge("c", "run", "gaussian-votes", Event.gaussian(sigma), released=3)
    assert 7.9 < charge.epsilon <= 8 and charge.epsilon_total == ledger.spent() == math.inf
    with pytest.raises(BudgetError, match="gaussian-votes for run run"):
        ledger.charge("d", "run", "gaussian-votes", Event.gaussian(sigma), released=3)
    with pytest.raises(BudgetError, match="holds an unprotected release"):
        Ledger(ledger.path, 8.0, DELTA).charge(
            "e", "run", "gaussian-votes", Event.gaussian(100.0), released=3
        )
    with pytest.raises(ValueError, match="finite unless"):
        Ledger(tmp_path / "other.jsonl", math.inf, DELTA, unprotected={"scores"})
