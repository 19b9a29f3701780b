"""Runs the ServerApp and the ClientApp in one of the ways Flower offers: in this process, or
simulated on Ray."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError
from fedduet.conf.sections import FederationConfig

from fedduet import conf


def run_inprocess(server_app: Any, client_app: Any, config: Mapping[str, Any], nodes: int) -> None:
    """Server and clients in this process, one after another. Raises what the ServerApp raises."""
    from fedduet.scripts.launching.inprocess import InProcessGrid
    from flwr.app import Context, RecordDict

    run_config = {"config": conf.dump(config)}
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config
    )
    server_app(InProcessGrid(client_app, nodes, run_config), context)


def run_simulation(
    server_app: Any,
    client_app: Any,
    run_config: Mapping[str, Any],
    nodes: int,
    backend: Mapping[str, Any],
    app_folder: Path,
    level: int = logging.ERROR,
) -> None:
    """Flower's simulation engine on Ray. Raises what the ServerApp raises.

    Uses Flower's private `_run_simulation`, as its own former command line did, because
    `run_simulation` drops the run config; the pin on flwr and a test keep this honest. `app_folder`
    holds the pyproject.toml with the app's default run config.
    """
    from flwr.app import Context, RecordDict
    from flwr.common import EventType
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.constant import NOOP_FEDERATION_ID
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    run = Run.create_empty(run_id=secrets.randbits(62))
    run.primary_task_id, run.federation_id, run.override_config = (
        1,
        NOOP_FEDERATION_ID,
        dict(run_config),
    )
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = (
        1,
        run.run_id,
        SUPERLINK_NODE_ID,
    )
    context = Context(
        run_id=run.run_id,
        node_id=0,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    with _flower_log(level):
        _run_simulation(
            num_supernodes=nodes,
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app=client_app,
            server_app=server_app,
            server_app_context=context,
            backend_config=dict(backend),
            app_dir=str(app_folder),
            is_app=True,
            run=run,
            verbose_logging=level <= logging.DEBUG,
        )


def check_ray(config: FederationConfig) -> None:
    """Raises ConfigError where `ray_address` names a head that does not answer, before anything is
    loaded."""
    if config.kind != "simulation" or config.ray_address is None:
        return
    if config.ray_address == "auto":
        from ray._private.services import find_gcs_addresses

        if not find_gcs_addresses():
            raise ConfigError(
                "federation.ray_address: found auto, but no Ray runs on this machine; start one"
                " (ray start --head) or leave it out"
            )
        return
    host, _, port = config.ray_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as problem:
        raise ConfigError(
            f"federation.ray_address: nothing answers at {config.ray_address} ({problem}); start a"
            " head (ray start --head), or leave it out"
        ) from None


def ray_backend(config: FederationConfig) -> dict[str, Any]:
    """Flower's backend config: `max_restarts` lets Ray replace a killed worker, else one client
    would fail in every later phase."""
    init = {"address": config.ray_address} if config.ray_address else {"include_dashboard": False}
    resources = {
        "num_cpus": config.cpus_per_client,
        "num_gpus": config.gpus_per_client,
        "max_restarts": -1,
    }
    return {"init_args": init, "client_resources": resources}


@contextlib.contextmanager
def _flower_log(level: int) -> Iterator[None]:
    """Flower's own log from `level` up, each line once (under Hydra it would appear twice)."""
    logger = logging.getLogger("flwr")
    before = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
