"""Checks a configuration, runs it with a display, and prints the outcome."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedduet.conf.sections import FederationConfig
from fedduet.scripts.launching.federation import ray_backend, run_inprocess, run_simulation
from fedduet.scripts.launching.lengths import token_counts
from fedduet.scripts.launching.preflight import preflight
from fedduet.scripts.launching.run_config import RunConfig, read_run
from fedduet.scripts.reporting import data_card, trackers
from fedduet.scripts.reporting.outcome import conclude
from fedduet.scripts.reporting.page import COMMAND
from fedduet.scripts.reporting.search import keep_a_search
from fedduet.scripts.reporting.terminal import Display
from fedduet.server.app import build_app
from fedduet.strategies.run.run_folder import Listener, write_atomically
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.profile import profile

from fedduet import conf

APP = Path(__file__).with_name("app")  # the pyproject.toml that Flower wants of a run


def launch(
    config: dict[str, Any], command: str | None = None, listeners: Sequence[Listener] = ()
) -> dict[str, Any]:
    """Run `config` to its end and return the summary. `command`: how a person asked for it, kept
    for the report; `listeners` hear every event.

    Raises ConfigError before any model is loaded; RuntimeError (or what stopped it) when the run
    did not complete.
    """
    run = read_run(config)
    names, folder = preflight(run), run.folder
    _keep_profile(run)
    if command:
        write_atomically(folder / COMMAND, f"{command}\n")
    before = (
        len((folder / "events.jsonl").read_bytes().splitlines())
        if (folder / "events.jsonl").is_file()
        else 0
    )
    tracking = trackers.Tracking(trackers.sinks(run.tracking, folder), step=before)
    with Display(folder) as display, contextlib.closing(tracking):
        server_app = build_app([display.event, tracking.event, *listeners])
        try:
            run_apps(server_app, run.federation, run.plain, len(names))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_goes_on(folder, command)) from None
        tracking.finish(json.loads((folder / "summary.json").read_text()), time.time())
    summary = json.loads((folder / "summary.json").read_text())
    finished = summary["status"] == "completed" and summary.get("answers")
    if finished and run.task.source == "arithmetic":
        keep_a_search(folder)
    return conclude(folder)


def _goes_on(folder: Path, command: str | None) -> str:
    """What a person who stopped a run has to know."""
    words = command or "fedduet OVERRIDES..."
    if "run.folder=" not in words:
        words = f"{words} run.folder={shlex.quote(str(folder))}"
    return f"stopped; what is done is in {folder}, and this goes on where it was:\n  {words}"


def run_apps(
    server_app: Any, federation: FederationConfig, config: Mapping[str, Any], nodes: int
) -> None:
    """The ServerApp and the ClientApp under the configured federation."""
    from fedduet.clients.app import app as client_app

    if federation.kind == "inprocess":
        run_inprocess(server_app, client_app, config, nodes)
    else:
        run_simulation(
            server_app,
            client_app,
            {"config": conf.dump(config)},
            nodes,
            ray_backend(federation),
            APP,
        )


def _keep_profile(run: RunConfig) -> None:
    """What the sites hold, for the report; texts that are cut are told at once."""
    if isinstance(run.task, TaskConfig):
        part = run.sites
        found = profile(run.task, run.seed, token_counts(part.slm, part.generator, run.task))
        data_card.keep(run.folder, found)
        for remark in data_card.cuts(found.to_dict()):
            print(f"note: {remark}")
