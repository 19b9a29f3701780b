"""Single changes to the code that keeps the budget, each of which some test must notice.

`python tests/privacy/mutants.py [NAME...]` applies them one by one to a copy of the repository, runs
the named tests there, and prints which lived. It is no test itself: it takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
VAULT, BUDGET = "clients/vault", "clients/vault/budget"
LEDGER = (
    "tests/clients/vault/budget/test_ledger.py",
    "-k",
    "plan or asks or stricter or adapts or equal or side",
)
ONCE = ("tests/clients/vault/release/test_once.py",)
APPROVALS = ("tests/clients/vault/release/test_approvals.py",)
ADAPTIVE = ("tests/lm/dp/test_adaptive.py",)
SITE = ("tests/clients/vault/test_vault.py", "-k", "budget or planned or delta or cap")
VOTES = ("tests/clients/vault/test_feedback.py", "-k", "vote or noise or one_away")
USERS = ("tests/clients/vault/test_user_unit.py", "-k", "each_user or mean_gradient or divided")
DISCRETE = ("tests/lm/dp/test_discrete_gaussian.py",)

# name: (file, what stands there, what the mutant says, tests)
MUTANTS = {
    "plan forgets its rounds": (
        f"{BUDGET}/ledger.py",
        'event.times(rounds), epsilon_run, at)\n                paid = {"rounds": rounds',
        'event, epsilon_run, at)\n                paid = {"rounds": 1',
        LEDGER,
    ),
    "plans cost one round": (
        f"{BUDGET}/entry.py",
        "entry.event.times(entry.rounds) for",
        "entry.event for",
        LEDGER,
    ),
    "rounds of a plan are paid again": (
        f"{BUDGET}/entry.py",
        "for entry in entries if entry.part_of is None]",
        "for entry in entries]",
        LEDGER,
    ),
    "a plan never ends": (
        f"{BUDGET}/entry.py",
        "plan.rounds - 1 - sum(entry.part_of == plan.id for entry in entries)",
        "plan.rounds - 1",
        LEDGER,
    ),
    "a plan pays for any mechanism": (
        f"{BUDGET}/entry.py",
        "(entry.run, entry.what) == (run, what)",
        "entry.run == run",
        LEDGER,
    ),
    "a plan pays for any event": (
        f"{BUDGET}/ledger.py",
        "if plan is not None and plan.event == event:",
        "if plan is not None:",
        LEDGER,
    ),
    "the run's cap is dropped": (
        f"{BUDGET}/ledger.py",
        "math.inf if epsilon_run is None else epsilon_run,",
        "math.inf,",
        LEDGER,
    ),
    "the vault gives no cap": (
        f"{VAULT}/vault.py",
        "                epsilon_run=request.epsilon,\n                rounds=rounds,",
        "                rounds=rounds,",
        SITE,
    ),
    "the request's stricter delta is ignored": (
        f"{VAULT}/release/policy.py",
        "delta = own if asked is None else min(own, asked)",
        "delta = own",
        SITE,
    ),
    "the ledger composes as if all were fixed": (
        f"{BUDGET}/ledger.py",
        "after = compose_adaptively([*spent, *new], at)",
        "after = compose([*spent, *new], at)",
        LEDGER,
    ),
    "a kept release is drawn again": (
        f"{BUDGET}/ledger.py",
        "if kept_digest(journal.entries, id) is not None:",
        "if False:",
        ONCE,
    ),
    "coins are not bound": (
        f"{BUDGET}/ledger.py",
        "if first.entry.coins != coins:",
        "if False:",
        ONCE,
    ),
    "coins do not name the request": (
        f"{VAULT}/release/once.py",
        "hashlib.sha256(self._key + request)",
        "hashlib.sha256(self._key)",
        ONCE,
    ),
    "fresh noise each time": (
        f"{VAULT}/release/once.py",
        "return SecureNoise(self._key)",
        "return SecureNoise()",
        ONCE,
    ),
    "the digest is not compared": (
        f"{BUDGET}/kept.py",
        "if earlier is not None:",
        "if False:",
        ONCE,
    ),
    "what nobody paid for is kept": (
        f"{BUDGET}/kept.py",
        "if not {id, *paid_by} &",
        "if False and {id, *paid_by} &",
        ONCE,
    ),
    "no sync of the ledger": (
        f"{BUDGET}/journal.py",
        "                    _write(descriptor, line)\n                    os.fsync(descriptor)",
        "                    _write(descriptor, line)",
        ONCE,
    ),
    "no sync of releases": (
        f"{VAULT}/release/releases.py",
        "            os.fsync(out.fileno())\n",
        "",
        ONCE,
    ),
    "no sync of the lock's head": (
        f"{BUDGET}/journal.py",
        "    os.fsync(lock)\n",
        "",
        ONCE,
    ),
    "no second head": (
        f"{BUDGET}/journal.py",
        'named = ((os.pread(lock, 200, 0), ".lock"), (second, ".head"))',
        'named = ((os.pread(lock, 200, 0), ".lock"),)',
        LEDGER,
    ),
    "the last line's check is not compared": (
        f"{BUDGET}/journal.py",
        "            if checks[count] != check:",
        "            if False:",
        LEDGER,
    ),
    "approval is skipped for weights": (
        f"{VAULT}/dispatch.py",
        'if vault.config.policy.approval == "never":',
        'if vault.config.policy.approval == "never" or name == "learn":',
        APPROVALS,
    ),
    "approval is skipped for scores": (
        f"{VAULT}/dispatch.py",
        'if vault.config.policy.approval == "never":',
        'if vault.config.policy.approval == "never" or name == "score":',
        APPROVALS,
    ),
    "approval names the id alone": (
        f"{VAULT}/release/approvals.py",
        'f"{_digest(request.message_id.encode())}\\n{whole}".encode()',
        "request.message_id.encode()",
        APPROVALS,
    ),
    "approved bytes are not compared": (
        f"{VAULT}/release/approvals.py",
        'if _digest(f"{key}\\n{_digest(body)}".encode()) != name:',
        "if False:",
        APPROVALS,
    ),
    "no part of delta for tails": ("lm/dp/adaptive.py", "TAIL = 0.1 ", "TAIL = 0.9 ", ADAPTIVE),
    "every tail is the whole part": (
        "lm/dp/adaptive.py",
        "return TAIL * delta / ((before + 1) * (before + 2))",
        "return TAIL * delta",
        ADAPTIVE,
    ),
    "deltas are held against the same point": (
        "lm/dp/adaptive.py",
        "gaussian_delta(epsilons[1:], mu)",
        "gaussian_delta(epsilons[:-1], mu * 0.98)",
        ADAPTIVE,
    ),
    "mu adds instead of its square": (
        "lm/dp/adaptive.py",
        "squares.append(mu * mu)",
        "squares.append(mu)",
        ADAPTIVE,
    ),
    "votes are rounded up": (
        f"{VAULT}/feedback.py",
        "np.trunc(scale * of_units)",
        "np.ceil(scale * of_units)",
        VOTES,
    ),
    "votes get half of the noise": (
        f"{VAULT}/feedback.py",
        "variance_for(sigma * VOTE)",
        "variance_for(sigma * VOTE / 2)",
        VOTES,
    ),
    "divided by records instead of users": (
        f"{VAULT}/feedback.py",
        "/ len(set(owners))",
        "/ len(owners)",
        USERS,
    ),
    "no room for the smoothing": (
        "lm/dp/discrete_gaussian.py",
        "+ SMOOTHING * SMOOTHING",
        "",
        DISCRETE,
    ),
    "zero is drawn twice as often": (
        "lm/dp/discrete_gaussian.py",
        "if size or not negative:",
        "if True:",
        DISCRETE,
    ),
}


def lives(copy: Path, name: str) -> bool:
    """Whether the tests pass on the mutant."""
    file, old, new, tests = MUTANTS[name]
    text = (copy / file).read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{name}: {file} has {text.count(old)} times {old!r}; needed: once")
    try:
        (copy / file).write_text(text.replace(old, new))
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return ran.returncode == 0
    finally:
        (copy / file).write_text(text)


def main(names: list[str]) -> int:
    """1 when one in ten lives, or more."""
    names = names or list(MUTANTS)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv"))
        alive = []
        for name in names:
            if lives(copy, name):
                alive.append(name)
            print(f"{'lives' if name in alive else 'dead '}  {name}", flush=True)
    print(f"{len(names) - len(alive)} of {len(names)} dead")
    return int(10 * len(alive) >= len(names))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
