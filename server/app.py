"""The ServerApp: hosts the cloud LLM, runs the strategy over the sites, writes the run folder."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError, check, nearest
from fedduet.server.cards import write_adapter_cards
from fedduet.server.cloud import LLMCloud, check_sections
from fedduet.server.tuner import LLMTuner, Settings
from fedduet.strategies.config import (
    CrossLMConfig,
    CustomConfig,
    FDKTConfig,
    FDKTCrossLMConfig,
    GBoostConfig,
)
from fedduet.strategies.crosslm import crosslm
from fedduet.strategies.custom import custom
from fedduet.strategies.fdkt import fdkt
from fedduet.strategies.fdkt_crosslm import fdkt_crosslm
from fedduet.strategies.gboost import gboost
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.run_folder import Listener, RunFolder, write_atomically
from fedduet.strategies.run.sites import Sites, SitesConfig
from fedduet.strategies.run.summary import summarise
from fedduet.tasks.builtin.standin import describe
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task
from fedduet.tasks.data.questions import AnyTask, check_task, names_of
from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fedduet import conf

STRATEGIES: Mapping[str, Any] = {
    "fdkt": (FDKTConfig, fdkt),
    "crosslm": (CrossLMConfig, crosslm),
    "fdkt_crosslm": (FDKTCrossLMConfig, fdkt_crosslm),
    "gboost": (GBoostConfig, gboost),
    "custom": (CustomConfig, custom),
}


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
    settings, tuning = strategy_settings(config)
    strategy, task_config = STRATEGIES[settings.name][1], task_for(settings, config)
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
        fdkt_part = settings.fdkt if isinstance(settings, FDKTCrossLMConfig) else settings
        curate, augment = getattr(fdkt_part, "curate", {}), getattr(fdkt_part, "augment", {})
        task = build_task(task_config)
        cloud = LLMCloud(run, task, config["llm"], curate, augment, seed)
        tuner = (
            LLMTuner(run, task, cloud, tuning, task_config, federation["kind"], seed)
            if tuning
            else None
        )
    moves = Moves(run, sites, cloud, float(privacy["epsilon"]), privacy["delta"], seed)
    moves.weight, moves.order = (
        getattr(settings, "weight", moves.weight),
        getattr(settings, "order", moves.order),
    )
    moves.feedback, moves.tuner = str(privacy["feedback"]), tuner
    run.event(
        "start", strategy=settings.name, task=task_config.name, seed=seed, clients=list(names)
    )
    status = "failed"
    try:
        sites.gather(names)
        strategy(moves, settings)
        status = "completed"
    finally:
        run.event("end", status=status)
        summary = summarise(
            run, moves, config, status, cloud.description if cloud else _llm_of(config)
        )
        run.summary(summary)
        write_adapter_cards(run.path, summary)
        if cloud:
            cloud.close()
    return summary


def task_for(settings: Any, config: Mapping[str, Any]) -> AnyTask:
    """The checked task. Raises ConfigError when it is of another kind than the strategy needs."""
    task, needed = (
        check_task(config["task"]),
        ("reasoning" if isinstance(settings, GBoostConfig) else "classification"),
    )
    if task.kind != needed:
        raise ConfigError(
            f"task.kind: found {task.kind!r}; strategy {settings.name} needs {needed} (fedduet"
            " tasks lists what there is)"
        )
    return task


def _llm_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How reports name the LLM that the sites ask themselves."""
    answers = config["answers"]
    asked = answers["base_url"] or answers["llm_path"]
    return {
        "engine": "gateway" if answers["base_url"] else "transformers",
        "path": asked,
        "description": describe(str(asked)),
    }


def strategy_settings(config: Mapping[str, Any]) -> tuple[Any, Settings | None]:
    """The checked `strategy` section, and what the server needs of it to tune its LLM (None: it
    does not). Raises ConfigError."""
    name = config["strategy"].get("name", "")
    if name not in STRATEGIES:
        raise ConfigError(
            f"strategy.name: unknown strategy {name!r}; {nearest(str(name), list(STRATEGIES))}"
        )
    settings = check(STRATEGIES[name][0], config["strategy"], "strategy")
    if isinstance(settings, FDKTConfig | FDKTCrossLMConfig | CustomConfig):
        one = settings.fdkt if isinstance(settings, FDKTCrossLMConfig) else settings
        check_sections(one.curate, one.augment)
    match settings:
        case CrossLMConfig():
            return settings, Settings(settings)
        case FDKTCrossLMConfig():
            return settings, Settings(settings.crosslm, "strategy.crosslm")
    return settings, None


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
