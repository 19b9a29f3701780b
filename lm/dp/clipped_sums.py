"""Sums of clipped per-example gradients of a causal LM, by two engines that agree: vmap and Opacus'
hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fedduet.lm.models.batch import Encoded, pad
from fedduet.lm.models.load import eager_attention, trainable
from torch import nn
from torch.func import functional_call, grad, vmap


@dataclass(frozen=True)
class LossBatch:
    """`ids` int64 [B, T], right-padded; `weights` float32 [B, T-1]: what each next-token loss
    counts in its row's loss.

    A row's weights are 1 / (its learned tokens) on them and 0 on pads and on given tokens, so a
    row's loss is a mean over its own tokens and nothing of another row enters it. A row without
    learned tokens has loss and gradient zero. Each `group` rows are one unit of privacy: its
    gradient, that of the sum of its rows' losses, is what is clipped.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    group: int = 1

    @property
    def units(self) -> int:
        """B / group."""
        return len(self.ids) // self.group

    def to(self, device: torch.device) -> LossBatch:
        """The same on another device."""
        return LossBatch(self.ids.to(device), self.weights.to(device), self.group)

    def only(self, units: torch.Tensor) -> LossBatch:
        """The units where bool [units] is true."""
        rows = units.repeat_interleave(self.group)
        return LossBatch(self.ids[rows], self.weights[rows], self.group)


def loss_batch(
    rows: Sequence[Encoded], pad_id: int, learn_context: bool, multiple: int = 1
) -> LossBatch:
    """The rows as a LossBatch, T a `multiple`. Pads stand right of a causal row's tokens, where no
    real token can see them."""
    ids, mask = pad([row.ids for row in rows], pad_id, multiple=multiple)
    weights = mask[:, 1:].float()
    for i, row in enumerate(rows):
        if not learn_context:
            weights[i, : max(row.context - 1, 0)] = 0.0
    return LossBatch(ids, weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0))


def unit_batch(
    units: Sequence[Sequence[Encoded]], pad_id: int, learn_context: bool, multiple: int = 1
) -> LossBatch:
    """Units of rows, whose loss is the mean over their rows; those with fewer rows than the largest
    are filled up with empty ones."""
    group = max(len(unit) for unit in units)
    filled = [row for unit in units for row in (*unit, *[Encoded(())] * (group - len(unit)))]
    batch = loss_batch(filled, pad_id, learn_context, multiple)
    shares = torch.tensor([1 / len(unit) for unit in units]).repeat_interleave(group)
    return LossBatch(batch.ids, batch.weights * shares[:, None], group)


def row_losses(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[B] losses: weighted sum over positions of the cross-entropy of logits [B, T, V] against the
    next tokens of ids [B, T]."""
    each = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return (each.view_as(weights) * weights).sum(dim=1)


class ClippedSum:
    """Adds up min(1, C / ||g_i||) * g_i over the units it is given, in float32; the norm is over
    all trainable parameters together."""

    def __init__(self, parameters: dict[str, nn.Parameter], clip: float) -> None:
        self.clip = clip
        self.sums = {
            name: torch.zeros_like(parameter, dtype=torch.float32)
            for name, parameter in parameters.items()
        }

    def factors(self, norms: torch.Tensor) -> torch.Tensor:
        """[units]: what a unit of this norm is multiplied by; 0 for a norm that is not finite."""
        return torch.where(
            norms.isfinite(), (self.clip / norms.clamp_min(1e-12)).clamp_max(1.0), 0.0
        )

    def add(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """Adds units' gradients [units, *shape], returns their norms [units] before clipping; one
        that is not finite adds nothing."""
        norms = torch.stack([g.float().flatten(1).norm(dim=1) for g in gradients.values()]).norm(
            dim=0
        )
        factors, usable = self.factors(norms), norms.isfinite()
        for name, gradient in gradients.items():
            rows = gradient.float().flatten(1)
            if not usable.all():
                rows = rows.masked_fill(~usable[:, None], 0.0)
            self.sums[name].view(-1).add_(factors @ rows)
        return norms


Engine = Callable[[LossBatch, ClippedSum], None]  # adds one micro-batch to the sum


@contextmanager
def vmap_engine(model: Any, autocast: bool) -> Iterator[Engine]:
    """torch.func: the gradient of one unit's loss, mapped over units. Eager attention, since SDPA
    has no rule for masks under vmap."""
    parameters = {name: parameter.detach() for name, parameter in trainable(model).items()}

    def loss(
        values: dict[str, torch.Tensor], ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        # a constant, so that models may look at it under vmap
        everything = torch.ones(ids.shape, dtype=torch.int64, device=ids.device)
        inputs = {"input_ids": ids, "attention_mask": everything, "use_cache": False}
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
            logits = functional_call(model, values, kwargs=inputs).logits
        return row_losses(logits, ids, weights).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))

    def add(batch: LossBatch, total: ClippedSum) -> None:
        total.add(
            each(
                parameters,
                *(rows.unflatten(0, (-1, batch.group)) for rows in (batch.ids, batch.weights)),
            )
        )

    with eager_attention(model):
        model.eval()
        yield add


@contextmanager
def hooks_engine(model: Any, autocast: bool) -> Iterator[Engine]:
    """Opacus' hooks on the plain model (Yousefpour et al. 2021): one backward pass, per-example
    gradients layer by layer."""
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    parameters = trainable(model)

    def add(batch: LossBatch, total: ClippedSum) -> None:
        # GPT-2's own have batch size 1
        device = batch.ids.device
        positions = torch.arange(batch.ids.shape[1], device=device).expand(batch.ids.shape)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(
                input_ids=batch.ids,
                position_ids=positions,
                attention_mask=torch.ones_like(batch.ids),
                use_cache=False,
            ).logits
        with warnings.catch_warnings():
            # embeddings have no input to differentiate
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            row_losses(logits, batch.ids, batch.weights).sum().backward()
        total.add(
            {
                name: parameter.grad_sample.unflatten(0, (-1, batch.group)).sum(dim=1)
                for name, parameter in parameters.items()
            }
        )
        for parameter in parameters.values():
            parameter.grad = parameter.grad_sample = None

    with eager_attention(model), without_dropout(model):  # the hooks only run in training mode
        hooks = GradSampleHooks(model, loss_reduction="sum", strict=False)
        try:
            yield add
        finally:
            hooks.remove_hooks()
            for parameter in parameters.values():
                for name in ("grad_sample", "_forward_counter"):
                    if hasattr(parameter, name):
                        delattr(parameter, name)


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Training mode inside the `with`, in which nothing is dropped."""
    drops = [
        (module, name)
        for module in model.modules()
        for name in ("p", "attention_dropout")
        if _drops(module, name)
    ]
    rates = [getattr(module, name) for module, name in drops]
    model.train()
    for module, name in drops:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for (module, name), rate in zip(drops, rates, strict=True):
            setattr(module, name, rate)
        model.eval()


def _drops(module: nn.Module, name: str) -> bool:
    """Whether the module's attribute is a rate of dropping."""
    return (isinstance(module, nn.Dropout) or name != "p") and isinstance(
        getattr(module, name, None), float
    )
