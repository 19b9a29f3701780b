"""The ServerApp that Flower starts (`flwr run`, `flower-simulation`): a run with the folder, the
table and the report of one that `fedduet` starts."""

from __future__ import annotations

import socket
from pathlib import Path

from fedduet.scripts.reporting.outcome import conclude
from fedduet.server.app import conduct, log_event
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedduet import conf

LOCAL_SUPERLINK = 39091  # the port of the one that `flwr run` starts and leaves running

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Raises what ends a run early."""
    config = conf.from_run_config(context.run_config)
    folder = Path(config["run"]["folder"] or conf.run_folder(config, str(context.run_id)))
    config["run"] = {**config["run"], "folder": str(folder)}
    print(f"run folder: {folder.absolute()}")
    conduct(grid, config, [log_event])
    conclude(folder.absolute())
    if _local_superlink():
        print(
            "Flower's local SuperLink goes on running (127.0.0.1:"
            f"{LOCAL_SUPERLINK}) and serves the next flwr run with the environment of the first;"
            f" to end it: kill $(pgrep -f 'flower-superlink.*{LOCAL_SUPERLINK}')"
        )


def _local_superlink() -> bool:
    try:
        socket.create_connection(("127.0.0.1", LOCAL_SUPERLINK), timeout=1).close()
    except OSError:
        return False
    return True
