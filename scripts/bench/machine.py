"""What the machine can do at most, per thread: products and memory bandwidth, the two limits of the
roofline."""

from __future__ import annotations

import statistics

import torch
from fedduet.scripts.bench.paired import Figure, device, take_turns

SIZE = 2048


def memory_rate(turns: int = 3, bytes_read: int = 512 * 2**20) -> float:
    """GB/s of reading a matrix larger than any cache once: a matrix-vector product, as decoding one
    row is."""
    large, vector = (
        torch.ones(bytes_read // 4 // SIZE, SIZE, device=device()),
        torch.ones(SIZE, device=device()),
    )
    return (
        bytes_read
        / 1e9
        / statistics.median(take_turns({"memory": lambda: large @ vector}, turns)["memory"])
    )


def measure(turns: int, small: bool) -> list[Figure]:
    """GFLOP/s of square products and GB/s of memory."""
    one = torch.rand(SIZE, SIZE, device=device())
    half = one.bfloat16()
    seconds = take_turns({"float32": lambda: one @ one, "bf16": lambda: half @ half}, turns)
    rates = {name: 2 * SIZE**3 / 1e9 / statistics.median(times) for name, times in seconds.items()}
    memory = memory_rate(turns, 2**28 if small else 2**29)
    return [
        Figure("machine", "float32 products", rates["float32"], "GFLOP/s"),
        Figure("machine", "bf16 products", rates["bf16"], "GFLOP/s"),
        Figure("machine", "memory read", memory, "GB/s"),
    ]
