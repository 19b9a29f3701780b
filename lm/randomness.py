"""Named random generators from one seed, and the secure source that differential privacy draws from."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`: the first bytes of SHA-256 over the seed and the names.

    Streams with different names are independent for all purposes here; ("a", "b") and ("ab",) differ.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the stream called `names`."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A numpy generator for the stream called `names`."""
    return np.random.Generator(np.random.Philox(derive(seed, *names)))


class NoiseSource(Protocol):
    """Where the coins and the noise of a private mechanism come from."""

    def uniform(self, count: int) -> np.ndarray:
        """`count` float64 numbers in [0, 1), multiples of 2**-53."""
        ...

    def normal(self, count: int) -> torch.Tensor:
        """`count` standard normal float32 numbers."""
        ...


class SecureNoise:
    """The operating system's secure generator: what a site uses. Nothing about it can be seeded or replayed.

    Normals are Box-Muller pairs in float64 from 53-bit uniforms, so |x| <= 8.57; P(|N| > 8.57) is about 1e-17. They are then rounded
    to float32: like every floating-point Gaussian mechanism this one is not proven against attacks on the low bits (Mironov 2012).
    """

    chunk = 1 << 20  # numbers at a time, to bound the memory

    def uniform(self, count: int) -> np.ndarray:
        bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> torch.Tensor:
        out = torch.empty(count, dtype=torch.float32)
        for start in range(0, count, self.chunk):
            size = min(self.chunk, count - start)
            half = (size + 1) // 2
            uniforms = self.uniform(2 * half)
            radius = torch.from_numpy(np.sqrt(-2.0 * np.log(1.0 - uniforms[:half])))  # 1 - u is exact and in (0, 1]
            angle = torch.from_numpy(uniforms[half:]) * (2.0 * torch.pi)
            pair = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
            out[start : start + size] = pair[:size]
        return out


class SeededNoise:
    """Reproducible and therefore NOT private: for tests, and for simulations whose reports say so."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self._coins = numpy_generator(seed, *names, "coins")
        self._normals = generator(seed, *names, "normals")

    def uniform(self, count: int) -> np.ndarray:
        return self._coins.random(count)

    def normal(self, count: int) -> torch.Tensor:
        return torch.randn(count, generator=self._normals)
