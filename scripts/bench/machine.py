"""What the machine can do at most, per thread: products and memory bandwidth, the two limits of the roofline."""

from __future__ import annotations

import statistics

import torch

from scripts.bench.paired import Figure, device, take_turns

SIZE = 2048


def measure(turns: int, small: bool) -> list[Figure]:
    """GFLOP/s of square products and GB/s of reading a large matrix once (a matrix-vector product, as decoding one row is)."""
    wide = 1 << (26 if small else 27)  # 256 or 512 MiB of float32: more than any cache
    large, vector = torch.ones(wide // SIZE, SIZE, device=device()), torch.ones(SIZE, device=device())
    one = torch.rand(SIZE, SIZE, device=device())
    half = one.bfloat16()
    seconds = take_turns({"float32": lambda: one @ one, "bf16": lambda: half @ half, "memory": lambda: large @ vector}, turns)
    flops = 2 * SIZE**3 / 1e9
    rates = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        Figure("machine", "float32 products", flops / rates["float32"], "GFLOP/s"),
        Figure("machine", "bf16 products", flops / rates["bf16"], "GFLOP/s"),
        Figure("machine", "memory read", 4 * wide / 1e9 / rates["memory"], "GB/s"),
    ]
