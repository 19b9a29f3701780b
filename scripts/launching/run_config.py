"""A run's configuration as a whole: made once, at the door, from what Hydra composed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedduet.clients.vault.config import SitesPart, read_sites
from fedduet.conf.check import ConfigError, Problems, nearest, unset
from fedduet.conf.sections import FederationConfig
from fedduet.scripts.launching.federation import check_ray
from fedduet.scripts.reporting.trackers import TrackingConfig, checked
from fedduet.server.config import ServerPart, read_server
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import check_data
from fedduet.tasks.data.questions import AnyTask

SECTIONS = (
    "strategy",
    "task",
    "llm",
    "slm",
    "generator",
    "answers",
    "privacy",
    "federation",
    "run",
    "tracking",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every section typed: the server's part, the sites' part, and trackers. `plain` is the tree
    that travels to both in Flower's run config and is kept in the run folder; its folders are
    absolute, so that every process of the run means the same place."""

    plain: Mapping[str, Any]
    server: ServerPart
    sites: SitesPart
    tracking: TrackingConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.server.folder

    @property
    def federation(self) -> FederationConfig:
        """Where the clients run."""
        return self.server.federation

    @property
    def task(self) -> AnyTask:
        """What is classified or answered."""
        return self.server.task

    @property
    def seed(self) -> int:
        """Of everything that is drawn and no DP noise."""
        return self.server.seed


def read_run(config: Mapping[str, Any]) -> RunConfig:
    """The typed configuration. Raises ConfigError with everything that is wrong in it, a line
    each, before anything is loaded or written."""
    problems = Problems()
    problems.of(_known, config)
    config = {"tracking": {}} | dict(config)
    server = read_server(config, problems)
    sites = read_sites(config, problems)
    tracking = problems.of(checked, config["tracking"])
    problems.of(_all_set, config, server)
    if server.federation:
        problems.of(check_ray, server.federation)
    if problems and isinstance(sites.task, TaskConfig) and sites.task.source == "files":
        problems.of(check_data, sites.task, sites.seed or 0)  # said together with the others
    problems.end()
    folder = server.folder.absolute()
    state = Path(server.federation.state_folder or folder / "sites").absolute()
    federation = server.federation.model_copy(update={"state_folder": str(state)})
    return RunConfig(
        plain=config
        | {
            "run": {**config["run"], "folder": str(folder)},
            "federation": {**config["federation"], "state_folder": str(state)},
        },
        server=replace(server, folder=folder, federation=federation),
        sites=replace(sites, folder=folder, federation=federation),
        tracking=tracking,
    )


def _known(config: Mapping[str, Any]) -> None:
    unknown = sorted(set(config) - {*SECTIONS, "seed", "hydra"})
    if unknown:
        raise ConfigError(f"{unknown[0]}: unknown key; {nearest(unknown[0], [*SECTIONS, 'seed'])}")


def _all_set(config: Mapping[str, Any], server: ServerPart) -> None:
    """What a YAML file leaves to the person, of the sections that this run reads."""
    unread = {"llm"} if server.strategy and server.strategy.spec.task == "reasoning" else set()
    if said := list(unset({key: value for key, value in config.items() if key not in unread})):
        raise ConfigError("\n".join(said))
