"""Products in int8 for generation on CPUs that have instructions for them, and whether they pay
here, by measurement."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch
from fedduet.lm.decoding.products import Product, product

APART = 8  # input channels with the largest numbers, which stay out of int8 [O]
FEW = 4  # rows up to which torch's own int8 product, with its cheaper call, wins [O]
LEVELS = 127
ROWS, TURNS = 32, 9  # of the measurement [O]
CLEARLY = 0.85  # of the other's time that int8 may take at most to be chosen [O]
_log = logging.getLogger(__name__)


class Int8Product:
    """x -> x @ weight.T on a CPU with weights [out, in] in int8, a scale for each output, and x
    [..., in] in int8, a scale for each row, found as it comes; the input channels `apart` stay as
    they are (LLM.int8(), Dettmers et al. 2022, with channels that are known beforehand). Sums are
    exact in int32, so a row's result does not depend on the rows beside it."""

    def __init__(self, weight: torch.Tensor, apart: torch.Tensor) -> None:
        weight = weight.float()
        self.apart, self.beside = apart, weight[:, apart].t().contiguous()
        weight = weight.index_fill(1, apart, 0.0)
        scale = _peak(weight).div_(LEVELS)
        whole = (weight / scale).round_().to(torch.int8)
        self.scale, self.zeros = scale[:, 0], torch.zeros(len(weight), dtype=torch.int64)
        self.transposed = whole.t()
        self.tiled = torch.ops.onednn.qlinear_prepack(whole, None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        every = x.reshape(-1, x.shape[-1]).float()
        rows = every.index_fill(1, self.apart, 0.0)
        scale = _peak(rows).div_(LEVELS)
        whole = (rows / scale).round_()
        if len(rows) <= FEW:
            sums = torch._int_mm(whole.to(torch.int8), self.transposed).float().mul_(self.scale)
        else:
            # unsigned around 128: what the instructions (VNNI) take
            sums = torch.ops.onednn.qlinear_pointwise(
                *(whole.add_(LEVELS + 1).to(torch.uint8), 1.0, LEVELS + 1),
                *(self.tiled, self.scale, self.zeros, None, 1.0, 0, torch.float32),
                *("none", [], ""),
            )
        sums = sums.mul_(scale).addmm_(every[:, self.apart], self.beside)
        return sums.to(x.dtype).view(*x.shape[:-1], -1)


class Watched:
    """A product that notes the largest number of each input channel, for `in_int8`."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self._exact = weight, product(weight)
        self.peaks = torch.zeros(weight.shape[1])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        peaks = x.reshape(-1, x.shape[-1]).abs().amax(dim=0).float()
        self.peaks = torch.maximum(self.peaks, peaks)
        return self._exact(x)

    def in_int8(self) -> Int8Product:
        return Int8Product(self.weight, self.peaks.topk(min(APART, len(self.peaks))).indices)


@cache
def int8_pays(outputs: int, inputs: int, dtype: torch.dtype) -> bool:
    """Whether a product of that shape takes clearly less time in int8 than in `dtype`: measured
    once in a process, within a few hundredths of a second, and said in the log."""
    coins = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=coins).to(dtype)
    x = torch.randn(ROWS, inputs, generator=coins).to(dtype)
    with torch.inference_mode():
        ways: dict[str, Product] = {
            "int8": Int8Product(weight, torch.arange(min(APART, inputs))),
            str(dtype): product(weight),
        }
        seconds = {name: [_seconds(way, x) for _ in range(2)][1] for name, way in ways.items()}
        for _ in range(TURNS):
            seconds = {name: min(seconds[name], _seconds(way, x)) for name, way in ways.items()}
    pays = seconds["int8"] <= CLEARLY * seconds[str(dtype)]
    _log.info(
        "generation in %s: a product takes %.3f ms in int8 and %.3f ms in %s",
        *("int8" if pays else dtype, 1e3 * seconds["int8"], 1e3 * seconds[str(dtype)], dtype),
    )
    return pays


def _seconds(way: Product, x: torch.Tensor) -> float:
    began = time.perf_counter()
    way(x)
    return time.perf_counter() - began


def _peak(rows: torch.Tensor) -> torch.Tensor:
    """[rows, 1]: the largest size in each row, above 0."""
    low, high = rows.aminmax(dim=1, keepdim=True)
    return torch.maximum(high, low.neg_()).clamp_min_(torch.finfo(torch.float32).tiny)
