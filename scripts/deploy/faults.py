"""`python -m scripts.deploy.faults`: every part of a deployment is killed in the middle of a release, and the run is finished all the same.

Over one federation of real processes (scripts/deploy/demo.py): for each part a run is submitted, the part gets SIGKILL while the sites
make their demonstrations, it is started again, and the run is submitted again with the same folder if it failed. Ends with 0 only when
every run completed and every site's ledger holds exactly one charge for each release of a run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.deploy.demo import SITES, SMALL, Federation, Stopped, configured, write_data

PARTS = ("vault", "supernode", "serverapp", "superlink")
KILLED = SITES[0]
SETTINGS = ["privacy.epsilon=0.5", "privacy.policy.epsilon_total=8", "federation.phase_timeout=150", *SMALL]


def main(argv: Sequence[str] = ()) -> int:
    """Print the matrix; 1 when a run was not finished or a ledger holds another number of charges than releases."""
    folder, rows = Path("runs/faults").absolute(), []
    shutil.rmtree(folder, ignore_errors=True)
    files = write_data(folder / "data")
    with Federation(folder) as federation:
        federation.start(configured(folder, "start", files, SETTINGS))
        for part in argv or PARTS:
            began = time.monotonic()
            try:
                found = one_fault(federation, part, configured(folder, f"run-{part}", files, SETTINGS))
            except Stopped as problem:
                found = f"FAILED: {problem}"
            rows.append((part, found, time.monotonic() - began))
            print(f"{part:10s} killed during synthesize: {found} ({rows[-1][2]:.0f} s)", flush=True)
    return int(any(found.startswith("FAILED") for _, found, _ in rows))


def one_fault(federation: Federation, part: str, config: Mapping[str, Any]) -> str:
    """Submit, kill, start again, and finish. Raises Stopped."""
    run_id, run = federation.submit(config), Path(config["run"]["folder"])
    federation.wait(lambda: begun(run, "synthesize-0"), "the phase synthesize-0", 90)
    kill(federation, part)
    ended = federation.ended(run_id, 240) if part != "superlink" else "killed"
    submitted = 1
    while ended != "finished:completed" and submitted < 3:
        submitted += 1
        ended = federation.ended(federation.submit(config), 240)
    if ended != "finished:completed":
        raise Stopped(f"the run is {ended} after {submitted} submissions")
    summary = json.loads((run / "summary.json").read_text())
    name = (run / "run_id").read_text().strip()
    charges = {site: charged(federation.folder / "sites" / site / "state" / "ledger.jsonl", name) for site in SITES}
    released = {site: int(site in summary["receipts"]) for site in SITES}
    if any(charges[site] > 1 or charges[site] < released[site] for site in SITES):
        raise Stopped(f"charges {charges} for releases {released}")
    left_out = sorted({failure["client"] for failure in summary["failures"] if failure["client"]})
    return f"completed, submitted {submitted} times, charges {charges}" + (
        f", left out of a phase: {', '.join(left_out)}" if left_out else ""
    )


def kill(federation: Federation, part: str) -> None:
    """SIGKILL, and a start of what a supervisor would start."""
    processes = federation.processes
    if part == "serverapp":
        listed = subprocess.run(["pgrep", "-f", f"flwr-serverapp.*:{federation.port}"], capture_output=True, text=True, check=False)
        victims = [int(line) for line in listed.stdout.split()]
        if not victims:
            raise Stopped("found no ServerApp process to kill")
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        return
    name = part if part == "superlink" else f"{part}-{KILLED}"
    processes.restart(name, pause=70.0 if part == "supernode" else 1.0)  # the same key is refused until its lease lapses
    if part == "superlink":
        federation.wait(federation.answers, "the SuperLink", 60)
        time.sleep(15)  # SuperNodes come back by themselves


def begun(run: Path, phase: str) -> bool:
    """Whether the run folder says that a phase has begun and the sites were asked."""
    file = run / "events.jsonl"
    return file.is_file() and '"sent", ' in file.read_text() and phase in file.read_text()


def charged(ledger: Path, run: str) -> int:
    """Charges of a run in a ledger."""
    lines = ledger.read_text().splitlines() if ledger.is_file() else []
    return sum(f'"{run}"' in line for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
