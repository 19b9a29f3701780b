"""`python -m fedduet.scripts.bench.users`: FDKT with records and with users as the unit of privacy,
on reviews of made-up writers."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from fedduet.tasks.builtin.world import world_records
from rich.console import Console
from rich.table import Table

CLIENTS, WRITERS = ("coffee", "tents", "laptops", "pillows"), 75
SETTINGS = (
    "task=files",
    "task.client_column=domain",
    "task.user_column=writer",
    "task.labels={0: negative, 1: positive}",
    "task.noun=review",
    "task.rows_per_client=200",
    "task.validation_rows=40",
    "federation=inprocess",
)


def write_tables(folder: Path) -> list[str]:
    """Reviews of the built-in world's grammar, each writer's spread over the file; the overrides
    that name the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed, rows in (("train", 1, 300), ("test", 2, 200)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "label", "domain", "writer"])
            for domain in CLIENTS:
                records = enumerate(world_records(domain, rows, seed))
                out.writerows(
                    [record.text, record.label, domain, f"writer {number % WRITERS}"]
                    for number, record in records
                )
    return [f"task.path={folder / 'train.csv'}", f"task.test_path={folder / 'test.csv'}"]


def main() -> int:
    """Run both for every seed (4 minutes each on one core) and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.bench.users", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/users"))
    given = parser.parse_args()
    files, table = (
        write_tables(given.folder.absolute()),
        Table(title="mean test accuracy of four sites, epsilon 8"),
    )
    for title in ("unit", "seed", "local", "fdkt", "n", "sample rate"):
        table.add_column(title)
    for seed in range(given.seeds):
        for unit in ("record", "user"):
            run = given.folder / f"{unit}-{seed}"
            asked = [
                *SETTINGS,
                *files,
                f"privacy.policy.unit={unit}",
                f"seed={seed}",
                f"run.folder={run}",
            ]
            subprocess.run([sys.executable, "-m", "fedduet.scripts.run", *asked], check=True)
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            receipt, accuracy = next(iter(summary["receipts"].values())), summary["accuracy"]
            figures = (
                f"{accuracy['local']:.3f}",
                f"{accuracy['fdkt']:.3f}",
                str(receipt["records"]),
                f"{receipt['sample_rate']:.3f}",
            )
            table.add_row(unit, str(seed), *figures)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
