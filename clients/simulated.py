"""Vaults for simulation: opened from the run's configuration, one for each partition, a few kept
open in each process."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedduet.clients.vault.config import SiteConfig, SitesPart, read_sites
from fedduet.conf.check import ConfigError
from fedduet.tasks.data.questions import names_of
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
    """`client` as the name of its folder: itself where it is a plain name, else its letters and
    digits with a hash behind them; a client column may hold anything, `../x` too."""
    if is_name(client):
        return client
    words = re.sub(r"[^A-Za-z0-9]+", "-", client).strip("-")[:40]
    return f"site-{words}-{hashlib.sha256(client.encode()).hexdigest()[:16]}"


def simulated_site(part: SitesPart, client: str, folder: Path, pooled: bool = False) -> SiteConfig:
    """The site of `client` as a run's configuration has it, with its state in `folder`."""
    return SiteConfig(
        client,
        folder,
        part.task,
        part.slm,
        part.generator,
        part.privacy.policy,
        seed=part.seed,
        seeded_noise=part.privacy.seeded_noise,
        scorer_embedding=part.privacy.scorer_embedding,
        counterfactual_baselines=part.privacy.counterfactual_baselines,
        pooled=pooled,
        pooled_folder=folder.parent / POOLED_FOLDER,
        answers=part.answers,
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
    part = read_sites(conf.from_run_config({"config": dumped}))
    if part.federation.kind == "simulation":
        torch.set_num_threads(max(1, round(part.federation.cpus_per_client)))
    names = names_of(part.task)
    if partition >= len(names):
        raise ConfigError(
            f"this node is number {partition + 1}, but the task has {len(names)} clients:"
            f" {', '.join(names)}"
        )
    # without a folder every run's sites start anew
    config = conf.from_run_config({"config": dumped})
    folder = part.folder or Path(conf.run_folder(config, str(run_id)))
    sites = replace(part, folder=folder).state_folder
    if partition < 0:
        return open_vault(simulated_site(part, "pooled", sites / POOLED_FOLDER, pooled=True))
    name = names[partition]
    return open_vault(simulated_site(part, name, sites / site_folder(name)))
