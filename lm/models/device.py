"""Where tensors live: the device that a configuration names, or the best one that is there."""

from __future__ import annotations

from typing import Any

from fedduet.conf.check import ConfigError


def chosen_device(name: str, key: str) -> Any:
    """The torch device that `name` means; "auto" is CUDA, then MPS, then the CPU.

    Raises ConfigError, naming the configuration's `key`, for one that is not there.
    """
    import torch

    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{key}: found {name!r}, allowed: auto, cpu, cuda, cuda:N, mps") from None
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= there:
        raise ConfigError(
            f"{key}: found {name!r}, but this machine has {there} of kind {device.type}; use auto"
            " or cpu"
        )
    return device
