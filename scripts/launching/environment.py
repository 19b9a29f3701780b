"""Environment variables that Flower, Ray and torch should see, set before any of them is
imported."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

SETTINGS = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else every run starts an installer
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "passive",  # spinning threads on busy cores were 8 to 33 times slower
    "TOKENIZERS_PARALLELISM": "false",
    "HYDRA_FULL_ERROR": "1",
}


def leave(code: int) -> NoReturn:
    """End the process with `code`, also when a run that failed has left a thread of Flower waiting
    for clients."""
    sys.stdout.flush()
    sys.stderr.flush()
    if any(
        thread is not threading.main_thread() and not thread.daemon
        for thread in threading.enumerate()
    ):
        os._exit(code)
    sys.exit(code)


def prepare() -> None:
    """Set what the user has not set."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
