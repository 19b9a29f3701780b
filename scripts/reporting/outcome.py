"""What every run ends with, whoever started it: the table, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedduet.conf.check import RunFailed, Waiting
from fedduet.scripts.reporting.page import write_page
from fedduet.scripts.reporting.terminal import print_outcome


def conclude(folder: Path) -> dict[str, Any]:
    """Print the table of the run in `folder`, write its report and return its summary. Raises
    RunFailed for one that did not complete, Waiting for one that something outside holds up."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print_outcome(summary, folder)
    if summary["status"] == "waiting":
        raise Waiting(summary["reason"])
    if summary["status"] != "completed":
        raise RunFailed(f"the run ended as {summary['status']}; see {folder}/events.jsonl")
    print(f"report: {write_page(folder)}")
    return summary
