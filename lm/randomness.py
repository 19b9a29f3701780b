"""Named random generators from one seed, and the secure source that differential privacy draws
from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from cryptography.hazmat.primitives.ciphers import CipherContext

MANTISSA = 2**52 - 1  # of a float64
ONE = 1023 << 52  # the bits of 1.0


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`: the first bytes of SHA-256 over the seed and the
    names.

    Streams with different names are independent for all purposes here; ("a", "b") and ("ab",)
    differ.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the stream called `names`."""
    import torch  # here and below: seeds and coins are wanted by what never loads a model

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

    def add_noise(self, values: torch.Tensor, deviation: float) -> None:
        """Adds N(0, deviation^2) to every one of float32 `values`, in place."""
        ...

    def integer(self, below: int) -> int:
        """A whole number from 0 to `below` - 1, each equally likely, however large `below` is."""
        ...


class SecureNoise:
    """What a site uses.

    Coins are bits of the operating system's secure generator, or, with a `key` of 32 bytes from it,
    of AES-256 in counter mode under that key: then the same calls give the same coins, which a site
    needs to finish a release that failed without drawing another. Normals come from AES-256 in
    counter mode under a key that these coins give anew for every draw: as hard to guess as the key,
    and fast enough for as many numbers as a model has weights. They are Box-Muller pairs in float64
    from 52-bit uniforms, so |x| <= 8.49; P(|N| > 8.49) is about 2e-17. They are then rounded to
    float32: like every floating-point Gaussian mechanism this one is not proven against attacks on
    the low bits (Mironov 2012).
    """

    chunk = 1 << 15  # numbers at a time: what a core's cache holds

    def __init__(self, key: bytes | None = None) -> None:
        # each key is used for one stream, so the counter may start at 0
        self._stream = key and _aes(key, bytes(16))

    def _bytes(self, count: int) -> bytes:
        return self._stream.update(bytes(count)) if self._stream else os.urandom(count)

    def integer(self, below: int) -> int:
        size = below.bit_length()
        while True:  # fewer than two draws on average
            drawn = int.from_bytes(self._bytes((size + 7) // 8)) >> (-size % 8)
            if drawn < below:
                return drawn

    def uniform(self, count: int) -> np.ndarray:
        bits = np.frombuffer(self._bytes(8 * count), dtype=np.uint64)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> torch.Tensor:
        import torch

        out = torch.empty(count, dtype=torch.float32)
        for start, numbers in self._chunks(count):
            out[start : start + len(numbers)] = numbers
        return out

    def add_noise(self, values: torch.Tensor, deviation: float) -> None:
        if values.device.type != "cpu":
            values.add_(
                self.normal(values.numel()).to(values.device).view_as(values), alpha=deviation
            )
            return
        flat = values.view(-1)
        for start, numbers in self._chunks(len(flat)):  # while they are in the core's cache
            flat[start : start + len(numbers)].add_(numbers, alpha=deviation)

    def _chunks(self, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        import torch

        stream = _aes(self._bytes(32), self._bytes(16))
        zeros, bits, half = bytes(8 * self.chunk), bytearray(8 * self.chunk), self.chunk // 2
        numbers, pair = torch.frombuffer(bits, dtype=torch.int64), torch.empty(self.chunk)
        for start in range(0, count, self.chunk):
            stream.update_into(zeros, bits)
            # in [1, 2), all 2**52 of them alike
            uniforms = numbers.bitwise_and_(MANTISSA).bitwise_or_(ONE).view(torch.float64)
            # of 2 - u, exact and in (0, 1]
            radius = uniforms[:half].neg_().add_(2.0).log_().mul_(-2.0).sqrt_()
            angle = uniforms[half:].mul_(2.0 * torch.pi)
            torch.mul(radius, angle.cos(), out=pair[:half])
            torch.mul(radius, angle.sin_(), out=pair[half:])
            yield start, pair[: count - start]


def _aes(key: bytes, counter: bytes) -> CipherContext:
    """AES-256 in counter mode, as a stream of bytes."""
    # here, so that what draws seeded numbers alone needs no such library
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()


class SeededNoise:
    """Reproducible and therefore NOT private: for tests, and for simulations whose reports say
    so."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self._coins = numpy_generator(seed, *names, "coins")
        self._normals = generator(seed, *names, "normals")

    def uniform(self, count: int) -> np.ndarray:
        return self._coins.random(count)

    def integer(self, below: int) -> int:
        words = self._coins.integers(0, 2**32, size=below.bit_length() // 32 + 3, dtype=np.uint32)
        return int.from_bytes(words.tobytes()) % below  # off by at most 2^-64, and no secret anyway

    def normal(self, count: int) -> torch.Tensor:
        import torch

        return torch.randn(count, generator=self._normals)

    def add_noise(self, values: torch.Tensor, deviation: float) -> None:
        values.add_(self.normal(values.numel()).to(values.device).view_as(values), alpha=deviation)
