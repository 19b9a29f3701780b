"""What only a simulation can do: measure the LLM on the sites' test texts, and tune an upper bound
on their training texts.

This is a measurement by somebody who holds all data because he simulates all sites. No method gives
a server these texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fedduet.conf.check import ConfigError
from fedduet.lm.randomness import numpy_generator
from fedduet.server.llm.base import LLM
from fedduet.server.measuring.task_accuracy import llm_accuracy
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import client_names, load_client
from fedduet.tasks.task import Split, Task

SIMULATIONS = ("inprocess", "simulation")


TEST_ROWS = 200  # of each site, that the LLM itself is measured on as a baseline [O]


def simulated_accuracy(
    llm: LLM, task: Task, config: TaskConfig, federation: str, seed: int
) -> dict[str, float]:
    """The LLM's own accuracy by site, by the likeliest label; {} for an engine that cannot score
    text."""
    splits = simulated_splits(config, federation, seed, TEST_ROWS)
    return llm_accuracy(llm, task, {site: split.test for site, split in splits.items()})


def simulated_splits(
    task: TaskConfig, federation: str, seed: int, rows: int
) -> Mapping[str, Split]:
    """Every simulated site's records; of the test split `rows` drawn by the seed. Raises
    ConfigError outside a simulation."""
    if federation not in SIMULATIONS:
        raise ConfigError(
            f"federation.kind {federation!r}: the sites' texts are at the sites; only a simulation"
            " measures the LLM on them"
        )
    splits = {}
    for site in client_names(task):
        split = load_client(task, site, seed)
        order = numpy_generator(seed, "llm-test", site).permutation(len(split.test))[:rows]
        splits[site] = replace(split, test=tuple(split.test[place] for place in sorted(order)))
    return splits
