"""The ServerApp: hosts the cloud LLM, runs the strategy over the sites, writes the run folder."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError, Waiting
from fedduet.server.cards import write_adapter_cards
from fedduet.server.cloud import LLMCloud
from fedduet.server.config import read_server
from fedduet.server.measuring.simulated import SIMULATIONS, simulated_accuracy
from fedduet.server.tuner import LLMTuner
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.run_folder import Listener, RunFolder, write_atomically
from fedduet.strategies.run.sites import Sites, SitesConfig
from fedduet.strategies.run.summary import summarise
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task
from fedduet.tasks.data.public import load_public
from fedduet.tasks.data.questions import names_of
from fedduet.wire.messages import LabelledTexts
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
    part = read_server(config)
    chosen, task_config, seed = part.strategy, part.task, part.seed
    spec, federation = chosen.spec, part.federation
    names = names_of(task_config)

    run = RunFolder(part.folder, config, listeners)
    waits = SitesConfig(
        phase_timeout=federation.phase_timeout,
        gather_timeout=federation.gather_timeout,
        minimum=federation.minimum_sites,
    )
    sites = Sites(grid, run, _run_id(run.path), waits)
    cloud, tuner = None, None
    if isinstance(task_config, TaskConfig):
        task = build_task(task_config)
        cloud = LLMCloud(run, task, part.llm, chosen.curate, chosen.augment, seed)
        tuner = (
            LLMTuner(run, task, cloud, chosen.tuning, task_config, federation.kind, seed)
            if chosen.tuning
            else None
        )
    moves = Moves(
        run=run,
        sites=sites,
        cloud=cloud,
        tuner=tuner,
        epsilon=part.privacy.epsilon,
        delta=part.privacy.delta,
        seed=seed,
        feedback=part.privacy.feedback,
    )
    if isinstance(task_config, TaskConfig):
        moves.public = lambda: public_texts(task_config, seed)
        if federation.kind in SIMULATIONS:
            moves.classify = lambda: simulated_accuracy(
                cloud.llm(), task, task_config, federation.kind, seed
            )
    run.event("start", strategy=spec.name, task=task_config.name, seed=seed, clients=list(names))
    status, why = "failed", {}
    try:
        if cloud and (chosen.needs.guided or chosen.needs.tuned):
            _check_llm(run, cloud)
        sites.gather(names)
        spec.run(moves, chosen.settings)
        status = "completed"
    except Waiting as missing:
        status, why = "waiting", {"reason": str(missing)}
        raise
    finally:
        run.event("end", status=status, **why)
        about = {"task": task_config.name, "seed": seed, "rounds": chosen.rounds}
        about["llm"] = cloud.description if cloud else part.asked_llm
        about["metric"] = getattr(task_config, "metric", "accuracy")
        summary = summarise(run, moves, spec, about, status) | why
        run.summary(summary)
        write_adapter_cards(run.path, summary)
        if cloud:
            cloud.close()
    return summary


def public_texts(task: TaskConfig, seed: int) -> LabelledTexts | None:
    """The task's public text, without what is held out to choose settings on."""
    found = load_public(task, seed)
    return found and LabelledTexts(
        [record.text for record in found.train], [record.label for record in found.train]
    )


CHARGED = ("synthesize-*", "score-*")  # phases that sites charge


def _check_llm(run: RunFolder, cloud: LLMCloud) -> None:
    """The LLM answers before the first charge, or nothing is spent. Raises Waiting, and ConfigError
    for one that cannot be loaded."""
    if any(file for phase in CHARGED for file in (run.path / "checkpoint").glob(f"{phase}.json")):
        return  # its phases may be done; if not, the next one says what is missing
    spent = "nothing was spent"
    try:
        cloud.check_answers()
    except Waiting as missing:
        raise Waiting(f"{missing}; {spent}, the same command starts it again") from None
    except ConfigError as problem:
        raise ConfigError(f"{problem}; {spent}") from None


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
