"""`python -m fedduet.scripts.bench.sweep`: where the time of a sweep of 12 tiny jobs goes beyond
the jobs' own work."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fedduet.scripts.sweeping.plan import PLAN, RECORD
from rich.console import Console
from rich.table import Table

TINY = (
    "federation=inprocess",
    "task.clients=[coffee,laptops]",
    "task.test_rows=40",
    "slm.max_steps=4",
    "generator.steps=2",
    "strategy.demonstrations_per_label=4",
    "strategy.augment.per_label=4",
    "strategy.augment.max_rounds=1",
    "strategy.baselines={local: true, dp_only: false, "
    "zero_shot: false, fedavg: false, pooled: false}",
)


def main() -> int:
    """Run the sweep and print the table; 1 when it failed or the overhead of a job is above
    `--most` seconds."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.bench.sweep", description=__doc__
    )
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument(
        "--most", type=float, default=1.0, help="seconds of overhead allowed for a job, on the mean"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "fedduet.scripts.run",
            "-m",
            f"seed=range(0,{given.jobs})",
            *TINY,
            f"hydra.sweep.dir={folder}",
        ]
        began = time.time()
        done = subprocess.run(command, capture_output=True, text=True)
        ended = time.time()
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
            return 1
        records = sorted(
            (json.loads(file.read_text()) for file in Path(folder).glob(f"*/{RECORD}")),
            key=lambda one: one["started"],
        )
        planned = (Path(folder) / PLAN).stat().st_mtime
        work = [
            json.loads((Path(folder) / one["name"] / "summary.json").read_text())["seconds"][
                "total"
            ]
            for one in records
        ]
    between = [
        later["started"] - earlier["ended"] for earlier, later in itertools.pairwise(records)
    ]
    around = [one["ended"] - one["started"] - busy for one, busy in zip(records, work, strict=True)]
    start, checks, end = (
        planned - began,
        records[0]["started"] - planned,
        ended - records[-1]["ended"],
    )
    overhead = (ended - planned - sum(work)) / len(records)
    table = Table(title=f"{len(records)} jobs in {ended - began:.1f} s")
    for column in ("what", "seconds", "how often"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("start of the process and plan", f"{start:.2f}", "once")
    table.add_row("composing every job's configuration to check it", f"{checks:.2f}", "once")
    table.add_row(
        "a job's work: everything that its own clock counts",
        f"{np.mean(work):.2f}",
        "mean of a job",
    )
    table.add_row(
        "around it: checks before a model is loaded, summary, report",
        f"{np.mean(around):.2f}",
        "mean of a job",
    )
    table.add_row("of that, in the first job (imports)", f"{around[0]:.2f}", "once")
    table.add_row(
        "between jobs: composing the next configuration", f"{np.mean(between):.2f}", "mean of a job"
    )
    table.add_row("table and page of the sweep, end of the process", f"{end:.2f}", "once")
    Console(width=100).print(table)
    print(
        f"overhead of a job beyond its work, everything after the plan shared out: {overhead:.2f}"
        f" s; allowed: {given.most:g} s"
    )
    return int(overhead > given.most)


if __name__ == "__main__":
    sys.exit(main())
