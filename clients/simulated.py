"""Vaults for simulation: opened from the run's configuration, one for each partition, a few kept
open in each process."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedduet.clients.vault.answering.config import AnswersConfig
from fedduet.clients.vault.config import SiteConfig, site_settings
from fedduet.conf.check import ConfigError, check
from fedduet.tasks.data.questions import check_task, names_of
from fedduet.wire.messages import is_name

from fedduet import conf

if TYPE_CHECKING:
    from fedduet.clients.vault.dispatch import AnyVault
    from flwr.app import Context

OPEN_VAULTS = 8  # records of at most so many sites are held in memory by one process
POOLED_FOLDER = "_pooled"  # of the upper bound; no site's folder starts so


def simulated_vault(context: Context, pooled: bool = False) -> AnyVault:
    """The vault of the virtual node in `context`; `pooled`: the upper bound's, which holds all
    sites' records."""
    config = context.run_config.get("config") or conf.dump(conf.from_run_config(context.run_config))
    return _open(
        str(config), -1 if pooled else int(context.node_config["partition-id"]), context.run_id
    )


def site_folder(client: str) -> str:
    """`client` as the name of its folder: itself where it is a plain name, else a hash; a client
    column may hold anything, `../x` too."""
    return client if is_name(client) else f"site-{hashlib.sha256(client.encode()).hexdigest()[:16]}"


def simulated_site(
    config: Mapping[str, Any], client: str, folder: Path, sites: Path, pooled: bool = False
) -> SiteConfig:
    """The site of `client` as a run's configuration has it, with its state in `folder`."""
    slm, generator, privacy = site_settings(config)
    return SiteConfig(
        client,
        folder,
        check_task(config["task"]),
        slm,
        generator,
        privacy.policy,
        seed=int(config["seed"]),
        seeded_noise=privacy.seeded_noise,
        scorer_embedding=privacy.scorer_embedding,
        counterfactual_baselines=privacy.counterfactual_baselines,
        pooled=pooled,
        pooled_folder=sites / POOLED_FOLDER,
        answers=check(AnswersConfig, config["answers"], "answers"),
        simulated=True,
    )


def give_back_memory() -> None:
    """Returns freed memory to the system, which glibc else keeps in pieces: half a MiB for each
    site that a process has served."""
    with contextlib.suppress(OSError, AttributeError):  # another C library, which has no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@lru_cache(maxsize=OPEN_VAULTS)
def _open(dumped: str, partition: int, run_id: int) -> AnyVault:
    import torch
    from fedduet.clients.vault.dispatch import open_vault

    give_back_memory()
    config = conf.from_run_config({"config": dumped})
    if config["federation"]["kind"] == "simulation":
        torch.set_num_threads(max(1, round(float(config["federation"]["cpus_per_client"]))))
    names = names_of(check_task(config["task"]))
    if partition >= len(names):
        raise ConfigError(
            f"this node is number {partition + 1}, but the task has {len(names)} clients:"
            f" {', '.join(names)}"
        )
    # without a folder every run's sites start anew
    run_folder = config["run"]["folder"] or f"runs/flower-{run_id}"
    sites = Path(config["federation"]["state_folder"] or Path(run_folder) / "sites")
    if partition < 0:
        return open_vault(
            simulated_site(config, "pooled", sites / POOLED_FOLDER, sites, pooled=True)
        )
    return open_vault(
        simulated_site(config, names[partition], sites / site_folder(names[partition]), sites)
    )
