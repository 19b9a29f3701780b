"""`python -m fedduet.scripts.deploy.faults`: every part of a deployment is killed before, during
and after its phase; the run ends all the same.

Over one federation of real processes (scripts/deploy/federation.py), with the LLM behind its own
endpoint: for each cell of the matrix a run is submitted, the part gets SIGKILL and is started again
as a supervisor would, and the run is submitted again with the same folder if it failed. Ends with 0
only when every run completed and each site's ledger has at most one charge for a run, and one for
each release.
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

import httpx
from fedduet.scripts.deploy.demo import configured, write_data
from fedduet.scripts.deploy.federation import BIN, SITES, Federation, Stopped, free_port, listening
from fedduet.scripts.launching.environment import prepare

PARTS = {
    "vault": "synthesize-0",
    "supernode": "synthesize-0",
    "serverapp": "synthesize-0",
    "superlink": "synthesize-0",
    "llm": "augment-0",
}
WHEN = ("before", "during", "after")
KILLED = SITES[0]
SETTINGS = [
    "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}",
    *(
        "strategy.demonstrations_per_label=8",
        "strategy.augment.per_label=16",
        "slm.max_steps=40",
        "task.test_rows=40",
    ),
    *("privacy.epsilon=0.5", "privacy.policy.epsilon_total=32", "federation.phase_timeout=150"),
]


def main(argv: Sequence[str] = ()) -> int:
    """Prints the matrix; arguments are cells such as `vault` or `vault/during`. 1 when a cell
    failed."""
    prepare()
    chosen = [
        (part, when)
        for part in PARTS
        for when in WHEN
        if not argv or part in argv or f"{part}/{when}" in argv
    ]
    folder, rows = Path("runs/faults").absolute(), {}
    shutil.rmtree(folder, ignore_errors=True)
    files, port = write_data(folder / "data"), free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with Federation(folder) as federation:
        federation.processes.start(
            "llm", [str(BIN / "fedduet-gateway"), "--no-keys", "--port", str(port)]
        )
        federation.start(configured(folder, "start", files, SETTINGS))
        federation.processes.wait(lambda: listening(port), "the LLM", 120)
        (model,) = httpx.get(f"{url}/models").json()["data"]
        context = f"llm.context={model['max_model_len']}"
        llm = [
            "llm=openai",
            f"llm.base_url={url}",
            f"llm.model={model['id']}",
            "llm.form=completion",
            context,
        ]
        for part, when in chosen:
            began = time.monotonic()
            try:
                found = one_fault(
                    federation,
                    part,
                    when,
                    configured(folder, f"{part}-{when}", files, [*SETTINGS, *llm]),
                )
            except Stopped as problem:
                found = f"FAILED: {problem}"
            rows[part, when] = found
            print(
                f"{part:10s} killed {when:6s} {PARTS[part]:13s}: {found}"
                f" ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    return int(any(found.startswith("FAILED") for found in rows.values()))


def one_fault(federation: Federation, part: str, when: str, config: Mapping[str, Any]) -> str:
    """Submit, kill, start again, and finish. Raises Stopped."""
    run_id, run = federation.submit(config), Path(config["run"]["folder"])
    federation.processes.wait(
        lambda: reached(run, PARTS[part], when), f"the moment {when} {PARTS[part]}", 120
    )
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
    charges = {
        site: charged(federation.folder / "sites" / site / "state" / "ledger.jsonl", name)
        for site in SITES
    }
    released = {site: int(site in summary["receipts"]) for site in SITES}
    if any(charges[site] > 1 or charges[site] < released[site] for site in SITES):
        raise Stopped(f"charges {charges} for releases {released}")
    left_out = sorted({failure["client"] for failure in summary["failures"] if failure["client"]})
    words = (
        f"completed, submitted {submitted} times, {sum(charges.values())} charges for"
        f" {sum(released.values())} releases"
    )
    return words + (f", left out of a phase: {', '.join(left_out)}" if left_out else "")


def reached(run: Path, phase: str, when: str) -> bool:
    """Whether the run is where the part shall be killed: under way but not in the phase, in it with
    the work given out, or past it."""
    file = run / "events.jsonl"
    if not file.is_file():
        return False
    events = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    on_progress = {event["event"] for event in events if event.get("phase") == phase}
    if when == "before":
        return True
    return (
        "phase_end" in on_progress
        if when == "after"
        else bool(
            on_progress & {"sent", "phase_start"}
            if phase.startswith("augment")
            else on_progress & {"sent"}
        )
    )


def kill(federation: Federation, part: str) -> None:
    """SIGKILL, and a start of what a supervisor would start."""
    if part == "serverapp":
        listed = subprocess.run(
            ["pgrep", "-f", f"flwr-serverapp.*:{federation.port}"],
            capture_output=True,
            text=True,
            check=False,
        )
        victims = [int(line) for line in listed.stdout.split()]
        if not victims:
            raise Stopped("found no ServerApp process to kill")
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        return
    name = part if part in ("superlink", "llm") else f"{part}-{KILLED}"
    # the same key is refused until its lease lapses
    federation.processes.restart(name, pause=70.0 if part == "supernode" else 1.0)
    if part == "superlink":
        federation.processes.wait(federation.answers, "the SuperLink", 60)
        time.sleep(15)  # SuperNodes come back by themselves


def charged(ledger: Path, run: str) -> int:
    """Charges of a run's texts in a ledger."""
    lines = ledger.read_text().splitlines() if ledger.is_file() else []
    return sum(f'"{run}"' in line and '"dp-sgd"' in line for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
