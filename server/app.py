"""The ServerApp: hosts the cloud LLM, runs the strategy over the sites, writes the run folder."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from fedduet.server.cards import write_adapter_cards
from fedduet.server.cloud import LLMCloud
from fedduet.server.strategy import chosen_strategy, task_for
from fedduet.server.tuner import LLMTuner
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.run_folder import Listener, RunFolder, write_atomically
from fedduet.strategies.run.sites import Sites, SitesConfig
from fedduet.strategies.run.summary import summarise
from fedduet.tasks.builtin.standin import describe
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task
from fedduet.tasks.data.questions import names_of
from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedduet import conf


def build_app(listeners: Iterable[Listener] = ()) -> ServerApp:
    """A ServerApp whose run events are also told to `listeners`."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        conduct(grid, conf.from_run_config(context.run_config), listeners)

    return server_app


def conduct(
    grid: Grid, config: Mapping[str, Any], listeners: Iterable[Listener] = ()
) -> dict[str, Any]:
    """Run the configured strategy to its end and return the summary, which is also in the run
    folder.

    Raises ConfigError before anything is loaded; whatever ends a run early is raised after
    `summary.json` says "failed".
    """
    chosen = chosen_strategy(config["strategy"])
    spec, task_config = chosen.spec, task_for(chosen.spec, config["task"])
    names = names_of(task_config)
    seed, federation, privacy = int(config["seed"]), config["federation"], config["privacy"]

    run = RunFolder(run_path(config), config, listeners)
    waits = SitesConfig(
        phase_timeout=float(federation["phase_timeout"]),
        gather_timeout=float(federation["gather_timeout"]),
        minimum=int(federation["minimum_sites"]),
    )
    sites = Sites(grid, run, _run_id(run.path), waits)
    cloud, tuner = None, None
    if isinstance(task_config, TaskConfig):
        task = build_task(task_config)
        cloud = LLMCloud(run, task, config["llm"], chosen.curate, chosen.augment, seed)
        tuner = (
            LLMTuner(run, task, cloud, chosen.tuning, task_config, federation["kind"], seed)
            if chosen.tuning
            else None
        )
    moves = Moves(
        run=run,
        sites=sites,
        cloud=cloud,
        tuner=tuner,
        epsilon=float(privacy["epsilon"]),
        delta=privacy["delta"],
        seed=seed,
        feedback=str(privacy["feedback"]),
    )
    run.event("start", strategy=spec.name, task=task_config.name, seed=seed, clients=list(names))
    status = "failed"
    try:
        sites.gather(names)
        spec.run(moves, chosen.settings)
        status = "completed"
    finally:
        run.event("end", status=status)
        about = {"task": task_config.name, "seed": seed, "rounds": chosen.rounds}
        about["llm"] = cloud.description if cloud else _llm_of(config)
        about["metric"] = getattr(task_config, "metric", "accuracy")
        summary = summarise(run, moves, spec, about, status)
        run.summary(summary)
        write_adapter_cards(run.path, summary)
        if cloud:
            cloud.close()
    return summary


def _llm_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How reports name the LLM that the sites ask themselves."""
    answers = config["answers"]
    asked = answers["base_url"] or answers["llm_path"]
    return {
        "engine": "gateway" if answers["base_url"] else "transformers",
        "path": asked,
        "description": describe(str(asked)),
    }


def run_path(config: Mapping[str, Any]) -> Path:
    """The run folder: `run.folder`, or a fresh one under runs/ named by strategy, task, seed and
    time."""
    folder = config["run"]["folder"]
    if folder:
        return Path(folder)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return (
        Path("runs")
        / f"{config['strategy']['name']}-{config['task']['name']}-seed{config['seed']}-{stamp}"
    )


def _run_id(path: Path) -> str:
    """The run's own id, made once per run folder: sites charge and answer under it."""
    file = path / "run_id"
    if not file.exists():
        write_atomically(file, hashlib.sha256(secrets.token_bytes(16)).hexdigest()[:16])
    return file.read_text().strip()


def log_event(entry: Mapping[str, Any]) -> None:
    """The events worth a line, in Flower's log: what `flwr run --stream` and `flower-simulation`
    show."""
    match entry["event"]:
        case "phase_end":
            log(INFO, "%s: %.1f s", entry["phase"], entry["seconds"])
        case "accuracy":
            mean = sum(entry["by_site"].values()) / max(1, len(entry["by_site"]))
            log(
                INFO,
                "test accuracy of %s: %.3f (mean of %d sites)",
                entry["model"],
                mean,
                len(entry["by_site"]),
            )
        case "failure" | "warning":
            log(
                WARNING,
                "%s",
                entry.get("message") or f"{entry['phase']} {entry['client']}: {entry['reason']}",
            )
        case "end":
            log(INFO, "run %s", entry["status"])


app = build_app([log_event])
