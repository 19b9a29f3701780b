"""A data set's profile as tables and sentences, for the terminal and for reports; no text is
quoted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from fedduet.scripts.reporting.html import opened, table
from fedduet.strategies.run.run_folder import write_atomically
from fedduet.tasks.data.profile import Profile, ranges

FILE = "data.json"  # in a run folder: the profile of a simulation's data
SHOWN = 12  # lines that a remark names [O]; bad rows are named one and all
LEFT_OUT = {"repeated": "repeats", "in_test": "also in test", "bad": "bad", "cut": "cut"}


def tables(found: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(title, rows with a head) of a profile as `Profile.to_dict` gives it."""
    made = []
    if sites := found["sites"]:
        labels = list(next(iter(sites.values()))["labels"])
        odd = [key for key in LEFT_OUT if any(one[key] for one in sites.values())]
        head = ["site", *labels, "training", "valid.", "test", *(LEFT_OUT[key] for key in odd)]
        lines = [head]
        for site, one in sites.items():
            counts = [*(one["labels"][label] for label in labels)]
            counts += [one[key] for key in ("train", "validation", "test", *odd)]
            lines.append([site, *(f"{count:,}" for count in counts)])
        made.append(("rows by site and label, and how they are split", lines))
    if found["lengths"]:
        lines = [["limit", "tokens", "median", "90 %", "longest", "texts cut"]]
        for name, one in found["lengths"].items():
            share = one["over"] / max(1, one["counted"])
            figures = [f"{one[key]:,}" for key in ("limit", "median", "ninetieth", "longest")]
            lines.append([name, *figures, f"{one['over']:,} of {one['counted']:,} ({share:.0%})"])
        made.append(("tokens of a text, against what the models are given at most", lines))
    return made


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What else a person should know, a sentence each."""
    median, ninetieth, most = found["words"]
    said = [
        f"{found['rows']:,} rows; words: median {median}, nine of ten at most {ninetieth}, longest"
        f" {most:,}"
    ]
    said += cuts(found)
    if found["blank_sites"]:
        said.append(f"{_rows(found['blank_sites'])} without a site; not used")
    for site, count in found["other_sites"].items():
        said.append(f"{_rows(count)} of {site!r}, which task.clients leaves out")
    if found["two_labels"]:
        said.append(f"{found['two_labels']:,} texts that stand there under two labels")
    if found["two_sites"]:
        said.append(f"{found['two_sites']:,} texts that stand there at two sites")
    for kind, lines in found["odd"].items():
        more = ", ..." if len(lines) > SHOWN else ""
        said.append(
            f"{kind}: {_rows(len(lines))}, odd and used all the same (line"
            f" {ranges(lines[:SHOWN])}{more})"
        )
    return said


def cuts(found: Mapping[str, Any]) -> list[str]:
    """Limits that cut more than one text in twenty, and which limit would do."""
    said = []
    for key, one in found["lengths"].items():
        share = one["over"] / max(1, one["counted"])
        if share > 0.05:
            enough = -(-one["ninetieth"] // 32) * 32
            said.append(
                f"{share:.0%} of the texts are longer than {key}={one['limit']}, and what comes"
                f" later is not seen; {key}={enough} holds nine of ten"
            )
    return said


def bad_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """What is wrong, in which file, how often, and every line; with a head."""
    lines = [["what is wrong", "file", "rows", "lines"]]
    for what, files in found["bad"].items():
        for file, places in files.items():
            lines.append([what, file, f"{len(places):,}", ranges(places)])
    return lines


def keep(folder: Path, found: Profile) -> None:
    """Write a simulation's profile into its run folder, for the report."""
    write_atomically(folder / FILE, json.dumps(found.to_dict(), indent=1) + "\n")


def section(folder: Path) -> str:
    """The profile that a run keeps, for its report; "" for a run without one, as of real sites."""
    if not (folder / FILE).is_file():
        return ""
    found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    parts = [f"<p>{escape(title)}</p>{table(lines, title)}" for title, lines in tables(found)]
    parts.append("<ul>" + "".join(f"<li>{escape(one)}</li>" for one in remarks(found)) + "</ul>")
    if len(bad := bad_rows(found)) > 1:
        parts.append(opened("bad rows, which were left out", table(bad, "bad rows")))
    return "".join(parts)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
