"""Clipped per-example gradient sums from one backward pass that makes no weight gradients: book-keeping (Bu et al., ICML 2023).

The pass keeps, for every use of a trained weight, the input a [B, T, d] and the gradient of the output g [B, T, p]. Norms of per-example
gradients follow from both, clip factors from the norms, and one weighted product per use adds the clipped sum. Where per-example gradients
are smaller than (a, g), as for LoRA and for biases, they are made at once and kept instead.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from lm.load import eager_attention, trainable
from lm.per_example import ClippedSum, Engine, LossBatch, row_losses, without_dropout

# ---------------------------------------------------------------- how one use of a weight makes its gradient


@dataclass(frozen=True)
class Whole:
    """Per-example gradients themselves, [B, *weight]."""

    gradients: torch.Tensor

    def squared(self) -> torch.Tensor:
        return self.gradients.flatten(1).square().sum(dim=1)

    def add(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        total.view(-1).add_(factors @ self.gradients.flatten(1))


class Seen:
    """A layer's input `raw` [B, T, d]; several layers may have seen the same. Under autocast a product saw it in bf16: `values`."""

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
    """Row i has the gradient g_i^T a_i: g [B, T, p] of the layer's output and a [B, T, d] its input; the weight is [p, d], or turned.

    `square` [B]: squared norms without making the gradients, sum((g g^T) * (a a^T)). Rounding a number to bf16 moves it by a share of at
    most 2^-9, so in bf16 two rounded factors are off by 2^-8 (1 + 2^-8) of the sum of absolute values, which `square` then includes.
    `rounding` [B]: how far `add` may move a row's gradient by rounding factor * g to bf16, 2^-9 |g| |a|. So no row adds more than the clip.
    """

    def __init__(self, g: torch.Tensor, seen: Seen, turned: bool) -> None:
        self.g, self.seen, self.turned = g, seen, turned
        pairs = (g @ g.transpose(1, 2)).float()
        products = pairs * seen.pairs
        self.square, self.rounding = products.sum(dim=(1, 2)).clamp_min(0), torch.zeros(len(g), device=g.device)
        if g.dtype == torch.bfloat16:
            self.square = self.square + products.abs().sum(dim=(1, 2)) * 2.0**-8 * (1 + 2.0**-8)
            sizes = pairs.diagonal(dim1=1, dim2=2).sum(dim=1) * seen.pairs.diagonal(dim1=1, dim2=2).sum(dim=1)
            self.rounding = 2.0**-9 * (1 + 2.0**-8) * sizes.sqrt()

    def squared(self) -> torch.Tensor:
        return self.square

    def inner(self, other: Product) -> torch.Tensor:
        """[B] inner products of two uses' gradients."""
        with exact_products(self.g.dtype):
            gradients = self.g.float() @ other.g.float().transpose(1, 2)
            return (gradients * (self.seen.values.float() @ other.seen.values.float().transpose(1, 2))).sum(dim=(1, 2))

    def add(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        g = self.g * factors[:, None, None]  # float32
        with exact_products(self.g.dtype):
            (total.t() if self.turned else total).addmm_(g.flatten(0, 1).t(), self.seen.values.float().flatten(0, 1))


@dataclass(frozen=True)
class Lookup:
    """Row i's gradient adds rows [B, T, d] into the weight's rows `ids` int64 [B, T]."""

    ids: torch.Tensor
    rows: torch.Tensor

    def squared(self) -> torch.Tensor:
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return ((self.rows @ self.rows.transpose(1, 2)) * same).sum(dim=(1, 2))

    def inner(self, other: Product) -> torch.Tensor:
        """[B] inner products with the gradients of a product with the same weight: a tied output layer's."""
        at_ids = other.g.gather(2, self.ids[:, None, :].expand(-1, other.g.shape[1], -1)).float()  # [B, S, T]
        return (at_ids * (other.seen.values.float() @ self.rows.transpose(1, 2))).sum(dim=(1, 2))

    def add(self, total: torch.Tensor, factors: torch.Tensor) -> None:
        total.index_add_(0, self.ids.flatten(), (self.rows * factors[:, None, None]).flatten(0, 1))


Use = Whole | Product | Lookup


@contextmanager
def exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Float32 products of numbers that are bf16: "medium" multiplies them as such, where a machine can, and adds up in float32.

    Results are float32 either way. Rounding them to bf16 would let one row move what the others of its batch count.
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
            joined = Lookup(torch.cat([one.ids, other.ids], dim=1), torch.cat([one.rows, other.rows], dim=1))
            total = total + joined.squared() - one.squared() - other.squared()
        else:
            first, second = (one, other) if isinstance(other, Product) else (other, one)
            total = total + 2 * first.inner(second)
    return total


# ---------------------------------------------------------------- layers


def uses_of(layer: nn.Module, seen: Seen, g: torch.Tensor, shared: bool) -> dict[str, Use]:
    """How the layer's own weights make their gradients: `seen` its input, `g` the gradient of its output [B, T, p]."""
    if isinstance(layer, nn.Embedding):
        if layer.padding_idx is not None:
            g = g.masked_fill((seen.raw == layer.padding_idx)[:, :, None], 0.0)
        return {"weight": Lookup(seen.raw, g.float())}
    uses: dict[str, Use] = {"bias": Whole(g.float().sum(dim=1))} if getattr(layer, "bias", None) is not None else {}
    if not isinstance(layer, nn.Linear | Conv1D):
        return uses | {"weight": Whole((g.float() * normed(layer, seen.raw.float())).sum(dim=1))}
    turned, (p, d) = isinstance(layer, Conv1D), (g.shape[2], seen.raw.shape[2])
    if shared or p * d > g.shape[1] * (p + d):
        return uses | {"weight": Product(g, seen, turned)}
    # rounding for each row by itself, before its norm is taken, does no harm
    gradients = (g.to(seen.raw.dtype).transpose(1, 2) @ seen.raw).float() if p < d else (g.transpose(1, 2) @ seen.values).float()
    return uses | {"weight": Whole(gradients.transpose(1, 2) if turned else gradients)}


def normed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a normalisation layer multiplies by its weight."""
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    eps = layer.variance_epsilon if hasattr(layer, "variance_epsilon") else layer.eps
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))


def is_known(layer: nn.Module) -> bool:
    """Whether `uses_of` knows the layer. RMSNorm is known by name, as every architecture has its own; `check` tries them out."""
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    if isinstance(layer, nn.Linear):
        return type(layer).forward is nn.Linear.forward
    return isinstance(layer, Conv1D | nn.LayerNorm) or type(layer).__name__.endswith("RMSNorm")


# ---------------------------------------------------------------- the engine


class Books:
    """Watches the layers of a model that own trained weights, and holds what one backward pass leaves in their uses."""

    def __init__(self, model: Any) -> None:
        self.names = {id(parameter): name for name, parameter in trainable(model).items()}
        self.layers, owners = [], Counter()
        for layer in model.modules():
            own = [id(parameter) for parameter in layer.parameters(recurse=False) if id(parameter) in self.names]
            if own and is_known(layer):
                self.layers.append(layer)
                owners.update(own)
        if unknown := [name for key, name in self.names.items() if key not in owners]:
            kind = type(model.get_submodule(unknown[0].rpartition(".")[0])).__name__
            raise ValueError(f"book-keeping does not know how to train {', '.join(unknown)} ({kind}); set generator.engine=vmap")
        self.shared = {key for key, count in owners.items() if count > 1}
        self.rows, self.uses = 0, defaultdict(list)
        self.last: tuple[torch.Tensor, Seen] | None = None

    def watch(self, layer: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """A forward hook: asks for the gradient of the output."""
        if not self.rows or not torch.is_grad_enabled():  # the latter is the first pass of a checkpoint
            return None
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(lambda gradient: self.enter(layer, arguments[0], gradient))
        return output

    def enter(self, layer: nn.Module, seen: torch.Tensor, gradient: torch.Tensor) -> None:
        """Keeps a use. A product under autocast saw its input in the dtype of its output, and so is it kept."""
        if len(seen) != self.rows or len(gradient) != self.rows:
            raise ValueError(f"{type(layer).__name__} saw inputs {list(seen.shape)} for {self.rows} rows; book-keeping needs [B, ...]")
        gradient = gradient.reshape(self.rows, -1, gradient.shape[-1])
        if self.last is None or self.last[0] is not seen or self.last[1].dtype != gradient.dtype:  # q, k and v see the same
            raw = seen if isinstance(layer, nn.Embedding) else seen.detach().reshape(self.rows, -1, seen.shape[-1])
            self.last = seen, Seen(raw, gradient.dtype)
        shared = any(id(parameter) in self.shared for parameter in layer.parameters(recurse=False))
        for kind, use in uses_of(layer, self.last[1], gradient, shared).items():
            if name := self.names.get(id(getattr(layer, kind))):
                self.uses[name].append(use)

    @contextmanager
    def open(self, rows: int) -> Iterator[dict[str, list[Use]]]:
        """Inside the `with`, forward and backward of a batch of `rows` enter their uses, by the weight's name."""
        self.rows, self.uses = rows, defaultdict(list)
        try:
            yield self.uses
        finally:
            self.rows, self.uses, self.last = 0, defaultdict(list), None


@contextmanager
def book_keeping_engine(model: Any, autocast: bool) -> Iterator[Engine]:
    """One forward and one backward pass without weight gradients. Raises ValueError for layers it does not know, by name.

    It starts with a trial on counted tokens (nothing private): a model that uses a weight where the books do not see it, or normalises
    in another way than they think, is refused by ValueError.
    """
    books, parameters = Books(model), trainable(model)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    known = inspect.signature(inner.forward).parameters
    extra = ["position_ids"] * ("position_ids" in known) + ["token_type_ids"] * hasattr(inner.config, "type_vocab_size")

    def losses(batch: LossBatch, autocast: bool, extra: Sequence[str] = extra) -> torch.Tensor:
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand(batch.ids.shape)  # models' own have batch size 1
        whole = {"position_ids": columns, "token_type_ids": torch.zeros_like(batch.ids), "attention_mask": torch.ones_like(batch.ids)}
        inputs = {name: whole[name] for name in (*extra, "attention_mask")}
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=autocast):
            logits = model(input_ids=batch.ids, use_cache=False, **inputs).logits
        return row_losses(logits, batch.ids, batch.weights)

    def add(batch: LossBatch, total: ClippedSum, autocast: bool = autocast) -> None:
        with frozen(parameters), books.open(len(batch.ids)) as uses:
            losses(batch, autocast).sum().backward()
        norms = torch.stack([squared_norms(kept) for kept in uses.values()]).sum(dim=0).clamp_min(0).sqrt()
        if rounding := [use.rounding for kept in uses.values() for use in kept if isinstance(use, Product)]:
            norms = norms + torch.stack(rounding).norm(dim=0)
        if not norms.isfinite().all():
            if norms.isfinite().any():
                add(LossBatch(batch.ids[norms.isfinite()], batch.weights[norms.isfinite()]), total, autocast)
            return
        factors = total.factors(norms)
        for name, kept in uses.items():
            for use in kept:
                use.add(total.sums[name], factors)

    def trial() -> None:
        ids = torch.arange(16, device=next(iter(parameters.values())).device).view(2, 8) % inner.config.get_text_config().vocab_size
        batch = LossBatch(ids, torch.full((2, 7), 1 / 7, device=ids.device))
        plain = losses(batch, False, extra=())
        rows = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, materialize_grads=True) for loss in plain]
        norms = [torch.stack([g.norm() for g in row]).norm() for row in rows]
        total = ClippedSum(parameters, float(min(norms)) / 2)
        add(batch, total, False)
        for place, (name, found) in enumerate(total.sums.items()):
            right = sum(row[place].float() * (total.clip / norm) for row, norm in zip(rows, norms, strict=True))
            if float((found - right).norm()) > 1e-3 * total.clip:
                raise ValueError(f"book-keeping does not see all of what {name} does in {type(inner).__name__}; set generator.engine=vmap")

    with ExitStack() as stack:
        stack.enter_context(eager_attention(model))
        model.eval()
        hooks = [layer.register_forward_hook(books.watch) for layer in books.layers]
        stack.callback(lambda: [hook.remove() for hook in hooks])
        trial()
        if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):  # only done in training mode
            stack.enter_context(without_dropout(model))
        yield add


@contextmanager
def frozen(parameters: dict[str, nn.Parameter]) -> Iterator[None]:
    """Parameters that no gradient is made for inside the `with`."""
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
