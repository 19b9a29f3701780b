"""A run's page while it goes on, to this machine alone: asked for again every few seconds until the
report is there."""

from __future__ import annotations

from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fedduet.scripts.reporting import charts
from fedduet.scripts.reporting.answer import interval
from fedduet.scripts.reporting.flow import phases_of
from fedduet.scripts.reporting.html import document, rows_of
from fedduet.scripts.reporting.page import page

AGAIN = 3  # seconds between two looks [O]
LOOPBACK = "127.0.0.1"


def live_page(folder: Path) -> str:
    """The report of a run that has ended; of one that goes on what is known so far."""
    if (folder / "summary.json").is_file():
        return page([folder])
    events = rows_of(folder / "events.jsonl")
    phases, doing = phases_of(folder), _doing(events)
    accuracy = {one["model"]: one["by_site"] for one in events if one["event"] == "accuracy"}
    spans = {}
    for model, by_site in accuracy.items():
        if values := list(by_site.values()):
            mean, half = interval(values)
            spans[model] = ((mean, mean - half, mean + half), values)
    sections = []
    if spans:
        drawn = charts.intervals(spans, next(reversed(spans)), "test accuracy so far")
        sections.append(("accuracy", "Accuracy so far", drawn))
    if phases:
        sections.append(("phases", "Phases", charts.timeline(phases, {})))
    troubles = [
        one.get("message") or f"{one['phase']} {one['client']}: {one['reason']}"
        for one in events
        if one["event"] in ("failure", "warning")
    ]
    if troubles:
        listed = "".join(f"<li>{escape(one)}</li>" for one in troubles)
        sections.append(("trouble", "Failures and warnings", f"<ul>{listed}</ul>"))
    seconds = events[-1]["elapsed"] if events else 0.0
    now = f"now {doing}" if doing else "between two phases"
    head = (
        f"<h1>Going on: {escape(now)}</h1><p>{len(phases)} phases are done, the last event came"
        f" after {seconds:.0f} s. This page looks again every {AGAIN} seconds.</p>"
    )
    return document(f"FedDuet: {folder.name}", sections, head, refresh=AGAIN)


def _doing(events: list[dict[str, Any]]) -> str:
    """The phase that has begun and not ended."""
    begun: dict[str, None] = {}
    for one in events:
        if one["event"] == "phase_start":
            begun[one["phase"]] = None
        elif one["event"] == "phase_end":
            begun.pop(one["phase"], None)
    return next(reversed(begun), "")


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1 (port 0: any free one). Asks by another host's name, as of
    a page elsewhere that means this machine, are refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (LOOPBACK, "localhost") or self.path != "/":
                self.send_error(404)
                return
            body = live_page(folder).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: the terminal is not the place for it."""

    return ThreadingHTTPServer((LOOPBACK, port), Handler)
