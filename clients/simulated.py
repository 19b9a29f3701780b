"""Vaults for simulation: opened from the run's configuration, one for each partition, a few kept open in each process."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context

import conf
from clients.vault.config import SiteConfig, site_settings
from clients.vault.vault import Vault
from conf.check import ConfigError, check
from tasks.config import TaskConfig
from tasks.load import client_names
from wire.messages import is_name

OPEN_VAULTS = 8  # records of at most so many sites are held in memory by one process
POOLED_FOLDER = "_pooled"  # of the upper bound; no site's folder starts so


def simulated_vault(context: Context, pooled: bool = False) -> Vault:
    """The vault of the virtual node in `context`; `pooled`: the upper bound's, which holds all sites' records."""
    config = context.run_config.get("config") or conf.dump(conf.from_run_config(context.run_config))
    return _open(str(config), -1 if pooled else int(context.node_config["partition-id"]), context.run_id)


def site_folder(client: str) -> str:
    """`client` as the name of its folder: itself where it is a plain name, else a hash; a client column may hold anything, `../x` too."""
    return client if is_name(client) else f"site-{hashlib.sha256(client.encode()).hexdigest()[:16]}"


@lru_cache(maxsize=OPEN_VAULTS)
def _open(dumped: str, partition: int, run_id: int) -> Vault:
    config = conf.from_run_config({"config": dumped})
    if config["federation"]["kind"] == "simulation":
        torch.set_num_threads(max(1, round(float(config["federation"]["cpus_per_client"]))))
    task = check(TaskConfig, config["task"], "task")
    slm, generator, privacy = site_settings(config)
    names = client_names(task)
    if partition >= len(names):
        raise ConfigError(f"this node is number {partition + 1}, but the task has {len(names)} clients: {', '.join(names)}")
    client = "pooled" if partition < 0 else names[partition]
    run_folder = config["run"]["folder"] or f"runs/flower-{run_id}"  # without a folder every run's sites start anew
    sites = Path(config["federation"]["state_folder"] or Path(run_folder) / "sites")
    folder = sites / (POOLED_FOLDER if partition < 0 else site_folder(client))
    return Vault(
        SiteConfig(
            client,
            folder,
            task,
            slm,
            generator,
            privacy.policy,
            seed=int(config["seed"]),
            seeded_noise=privacy.seeded_noise,
            scorer_embedding=privacy.scorer_embedding,
            counterfactual_baselines=privacy.counterfactual_baselines,
            pooled=partition < 0,
            pooled_folder=sites / POOLED_FOLDER,
        )
    )
