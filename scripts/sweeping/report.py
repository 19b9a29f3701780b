"""`fedduet sweep-report`: one table and one page over all runs of a sweep, and what is missing or
failed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedduet.scripts.sweeping.page import page
from fedduet.scripts.sweeping.rows import as_markdown, read_jobs, rows, table
from fedduet.strategies.run.run_folder import write_atomically


def conclude(folder: Path, names: Iterable[str], out: Path | None = None) -> int:
    """Print the table and what is not there, write the page; 1 when a job of `names` did not
    complete."""
    jobs = read_jobs(folder)
    found = rows(jobs)
    if found:
        print(as_markdown(table(found)))
    for job in jobs:
        if job.state != "completed":
            print(f"{job.state}: {job.name}: {job.why}")
    file = out or folder / "sweep.html"
    write_atomically(file, page(folder, jobs, linked=file.absolute().parent == folder.absolute()))
    print(
        f"{sum(job.state == 'completed' for job in jobs)} of {len(jobs)} jobs completed; page:"
        f" {file}"
    )
    wanted = set(names)
    return int(any(job.state != "completed" for job in jobs if job.name in wanted))


def main(argv: Sequence[str]) -> int:
    """`fedduet sweep-report DIR`: 0 when every job of the sweep completed, else 1."""
    parser = argparse.ArgumentParser(prog="fedduet sweep-report", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder that fedduet -m printed")
    parser.add_argument(
        "--out", type=Path, help="where the page goes; default: sweep.html in the folder"
    )
    given = parser.parse_args(list(argv))
    return conclude(given.folder, [job.name for job in read_jobs(given.folder)], given.out)
