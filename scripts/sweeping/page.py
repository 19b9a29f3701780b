"""The page of a sweep: accuracy against what was swept, every setting, every job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from fedduet.scripts.reporting import charts
from fedduet.scripts.reporting.answer import interval
from fedduet.scripts.reporting.html import document
from fedduet.scripts.reporting.html import picture as framed
from fedduet.scripts.reporting.html import table as html_table
from fedduet.scripts.sweeping.rows import Job, Row, rows, table
from fedduet.strategies.run.summary import told


def page(folder: Path, jobs: Sequence[Job], linked: bool = True) -> str:
    """The sweep as one page that needs nothing else; where it is `linked`, names lead to the jobs'
    own reports beside it."""
    found = rows(jobs)
    done = [job for job in jobs if job.summary]
    head = f"<h1>{escape(_headline(jobs, found))}</h1>"
    descriptions = dict.fromkeys(job.summary["llm"].get("description", "") for job in done)
    if any(descriptions):
        note = (
            " A stand-in is no large model: figures show that the machinery works."
            if any("stand-in" in one for one in descriptions)
            else ""
        )
        head += f"<p>LLM: {escape('; '.join(filter(None, descriptions)))}.{note}</p>"
    sections = [
        (f"against-{number}", f"Accuracy against {key}", _against(key, found))
        for number, key in enumerate(_numeric_keys(found))
    ]
    if found:
        taught = [row for row in found if row.method in _taught(jobs)]
        spans = {_label(row): (_span(row.values), row.values) for row in taught or found}
        best = max(spans, key=lambda name: spans[name][0][0])
        picture = charts.intervals(
            spans, best, "test accuracy, mean with 95 % interval over seeds; a dot for each seed"
        )
        sections.append(
            (
                "settings",
                "What each setting ended with",
                framed(picture, "test accuracy by setting"),
            )
        )
        sections.append(
            (
                "methods",
                "All methods",
                f"{html_table(table(found))}<p>{escape(_meanings(found, jobs))}</p>",
            )
        )
    return document(
        f"FedDuet: a sweep of {len(jobs)} jobs",
        [*sections, ("jobs", "Jobs", _job_list(folder, jobs, linked))],
        head,
    )


def _headline(jobs: Sequence[Job], found: Sequence[Row]) -> str:
    finished = sum(bool(job.summary) for job in jobs)
    said = f"{finished} of {len(jobs)} jobs completed"
    best = max(
        (row for row in found if row.method in _taught(jobs)),
        key=lambda row: float(np.mean(row.values)),
        default=None,
    )
    return f"{said}; best: {_label(best)} with {np.mean(best.values):.3f}" if best else said


def _taught(jobs: Iterable[Job]) -> set[str]:
    return {told(job.summary)["final"] for job in jobs if job.summary}


def _label(row: Row) -> str:
    of = ", ".join(
        value if key == "strategy" else f"{key.rpartition('.')[2]} {value}"
        for key, value in row.setting
        if value != row.method
    )
    return f"{row.method} ({of})" if of else row.method


def _span(values: Sequence[float]) -> charts.Span:
    mean, half = interval(list(values))
    return mean, mean - half, mean + half


def _numeric_keys(found: Sequence[Row]) -> list[str]:
    """Swept keys whose values are two or more numbers: accuracy is drawn against them."""
    keys = {}
    for row in found:
        for key, value in row.setting:
            keys.setdefault(key, set()).add(_number(value))
    return [key for key, values in keys.items() if len(values) > 1 and None not in values]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _against(key: str, found: Sequence[Row]) -> str:
    """Accuracy against `key`, a picture for every setting of the rest; seeds are points."""
    pictures = []
    for rest in dict.fromkeys(
        tuple(pair for pair in row.setting if pair[0] != key) for row in found
    ):
        of = [row for row in found if tuple(pair for pair in row.setting if pair[0] != key) == rest]
        places = sorted({dict(row.setting)[key] for row in of}, key=float)
        at = {(row.method, dict(row.setting)[key]): row.values for row in of}
        methods = list(dict.fromkeys(row.method for row in of))
        means = {
            name: [
                float(np.mean(at[name, place])) if (name, place) in at else None for place in places
            ]
            for name in methods
        }
        dots = {name: [at.get((name, place), ()) for place in places] for name in methods}
        said = ", ".join(value if name == "strategy" else f"{name} {value}" for name, value in rest)
        picture = framed(
            charts.lines(means, places, f"accuracy by {key} {said}", dots),
            f"accuracy by {key} {said}",
        )
        pictures.append(f"<h3>{escape(said)}</h3>{picture}" if said else picture)
    return f"<p>Lines join means over seeds; small dots are seeds.</p>{''.join(pictures)}"


def _meanings(found: Sequence[Row], jobs: Sequence[Job]) -> str:
    methods = dict.fromkeys(row.method for row in found)
    known = {k: v for job in jobs if job.summary for k, v in told(job.summary)["columns"].items()}
    return "; ".join(f"{name}: {known[name]}" for name in methods if name in known) + "."


def _job_list(folder: Path, jobs: Sequence[Job], linked: bool) -> str:
    lines = [["job", "state", "seconds", "why"]]
    for job in jobs:
        seconds = f"{job.summary['seconds']['total']:.1f}" if job.summary else "-"
        lines.append([job.name, job.state, seconds, job.why])
    listed = html_table(lines)
    for job in jobs:
        if linked and (folder / job.name / "report.html").is_file():
            cell = f'<th scope="row">{escape(job.name)}</th>'
            listed = listed.replace(
                cell,
                '<th scope="row"><a'
                f' href="{escape(_address(job.name))}/report.html">{escape(job.name)}</a></th>',
            )
    return listed


def _address(name: str) -> str:
    return "./" + quote(name, safe="=,~+")
