"""What one use of a trained weight leaves of its gradient, row by row, so that norms and clipped
sums follow (book-keeping)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Whole:
    """Per-example gradients themselves, [B, *weight]."""

    gradients: torch.Tensor

    def squared(self) -> torch.Tensor:
        return self.gradients.flatten(1).square().sum(dim=1)

    def add(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        total.view(-1).add_(factors @ self.gradients.flatten(1))


class LayerInput:
    """A layer's input `raw` [B, T, d]; several layers may have seen the same. Under autocast a
    product saw it in bf16: `values`."""

    def __init__(self, raw: torch.Tensor, dtype: torch.dtype) -> None:
        self.raw, self.dtype = raw, dtype

    @cached_property
    def values(self) -> torch.Tensor:
        """[B, T, d] in the dtype of the output."""
        return self.raw.to(self.dtype)

    @cached_property
    def pairs(self) -> torch.Tensor:
        """[B, T, T] inner products of a row's places, each rounded to the dtype of the values."""
        return (self.values @ self.values.transpose(1, 2)).float()


class Product:
    """Row i has the gradient g_i^T a_i: g [B, T, p] of the layer's output and a [B, T, d] its
    input; the weight is [p, d], or turned.

    `square` [B]: squared norms without making the gradients, sum((g g^T) * (a a^T)). Rounding a
    number to bf16 moves it by a share of at most 2^-9, so in bf16 two rounded factors are off by
    2^-8 (1 + 2^-8) of the sum of absolute values, which `square` then includes. `rounding` [B]: how
    far `add` may move a row's gradient by rounding factor * g to bf16, 2^-9 |g| |a|. So no row adds
    more than the clip.
    """

    def __init__(self, g: torch.Tensor, seen: LayerInput, turned: bool) -> None:
        self.g, self.seen, self.turned = g, seen, turned
        pairs = (g @ g.transpose(1, 2)).float()
        products = pairs * seen.pairs
        self.square, self.rounding = (
            products.sum(dim=(1, 2)).clamp_min(0),
            torch.zeros(len(g), device=g.device),
        )
        if g.dtype == torch.bfloat16:
            self.square = self.square + products.abs().sum(dim=(1, 2)) * 2.0**-8 * (1 + 2.0**-8)
            sizes = pairs.diagonal(dim1=1, dim2=2).sum(dim=1) * seen.pairs.diagonal(
                dim1=1, dim2=2
            ).sum(dim=1)
            self.rounding = 2.0**-9 * (1 + 2.0**-8) * sizes.sqrt()

    def squared(self) -> torch.Tensor:
        return self.square

    def inner(self, other: Product) -> torch.Tensor:
        """[B] inner products of two uses' gradients."""
        with exact_products(self.g.dtype):
            gradients = self.g.float() @ other.g.float().transpose(1, 2)
            return (
                gradients * (self.seen.values.float() @ other.seen.values.float().transpose(1, 2))
            ).sum(dim=(1, 2))

    def add(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        g = self.g * factors[:, None, None]  # float32
        with exact_products(self.g.dtype):
            (total.t() if self.turned else total).addmm_(
                g.flatten(0, 1).t(), self.seen.values.float().flatten(0, 1)
            )


@dataclass(frozen=True)
class Lookup:
    """Row i's gradient adds rows [B, T, d] into the weight's rows `ids` int64 [B, T]."""

    ids: torch.Tensor
    rows: torch.Tensor

    def squared(self) -> torch.Tensor:
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return ((self.rows @ self.rows.transpose(1, 2)) * same).sum(dim=(1, 2))

    def inner(self, other: Product) -> torch.Tensor:
        """[B] inner products with the gradients of a product with the same weight: a tied output
        layer's."""
        # [B, S, T]
        at_ids = other.g.gather(2, self.ids[:, None, :].expand(-1, other.g.shape[1], -1)).float()
        return (at_ids * (other.seen.values.float() @ self.rows.transpose(1, 2))).sum(dim=(1, 2))

    def add(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        total.index_add_(0, self.ids.flatten(), (self.rows * factors[:, None, None]).flatten(0, 1))


Use = Whole | Product | Lookup


@contextmanager
def exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Float32 products of numbers that are bf16: "medium" multiplies them as such, where a machine
    can, and adds up in float32.

    Results are float32 either way. Rounding them to bf16 would let one row move what the others of
    its batch count.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def squared_norms(uses: list[Use]) -> torch.Tensor:
    """[B] squared norms of the gradients that all uses of one weight make together."""
    whole = [use.gradients for use in uses if isinstance(use, Whole)]
    rest: list[Any] = [use for use in uses if not isinstance(use, Whole)]
    if whole:
        return Whole(sum(whole[1:], whole[0])).squared()
    total = sum(use.squared() for use in rest)
    for one, other in combinations(rest, 2):
        if isinstance(one, Lookup) and isinstance(other, Lookup):
            joined = Lookup(
                torch.cat([one.ids, other.ids], dim=1), torch.cat([one.rows, other.rows], dim=1)
            )
            total = total + joined.squared() - one.squared() - other.squared()
        else:
            first, second = (one, other) if isinstance(other, Product) else (other, one)
            total = total + 2 * first.inner(second)
    return total


# ---------------------------------------------------------------- layers


def uses_of(layer: nn.Module, seen: LayerInput, g: torch.Tensor, shared: bool) -> dict[str, Use]:
    """How the layer's own weights make their gradients: `seen` its input, `g` the gradient of its
    output [B, T, p]."""
    if isinstance(layer, nn.Embedding):
        if layer.padding_idx is not None:
            g = g.masked_fill((seen.raw == layer.padding_idx)[:, :, None], 0.0)
        return {"weight": Lookup(seen.raw, g.float())}
    uses: dict[str, Use] = (
        {"bias": Whole(g.float().sum(dim=1))} if getattr(layer, "bias", None) is not None else {}
    )
    if not isinstance(layer, nn.Linear | Conv1D):
        return uses | {"weight": Whole((g.float() * normed(layer, seen.raw.float())).sum(dim=1))}
    turned, (p, d) = isinstance(layer, Conv1D), (g.shape[2], seen.raw.shape[2])
    if shared or p * d > g.shape[1] * (p + d):
        return uses | {"weight": Product(g, seen, turned)}
    # rounding for each row by itself, before its norm is taken, does no harm
    gradients = (
        (g.to(seen.raw.dtype).transpose(1, 2) @ seen.raw).float()
        if p < d
        else (g.transpose(1, 2) @ seen.values).float()
    )
    return uses | {"weight": Whole(gradients.transpose(1, 2) if turned else gradients)}


def normed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a normalisation layer multiplies by its weight."""
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    eps = layer.variance_epsilon if hasattr(layer, "variance_epsilon") else layer.eps
    return x * torch.rsqrt(
        x.square().mean(dim=-1, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)
    )


def is_known(layer: nn.Module) -> bool:
    """Whether `uses_of` knows the layer. RMSNorm is known by name, as every architecture has its
    own; `check` tries them out."""
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    return isinstance(layer, Conv1D | nn.LayerNorm) or type(layer).__name__.endswith("RMSNorm")
