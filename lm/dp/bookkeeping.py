"""Clipped per-example gradient sums from one backward pass that makes no weight gradients:
book-keeping (Bu et al., ICML 2023).

The pass keeps, for every use of a trained weight, the input a [B, T, d] and the gradient of the
output g [B, T, p]. Norms of per-example gradients follow from both, clip factors from the norms,
and one weighted product per use adds the clipped sum. Where per-example gradients are smaller than
(a, g), as for LoRA and for biases, they are made at once and kept instead. Rows of one unit, whose
gradient is clipped as one, are laid end to end: their products add up over places as those of one
long row do.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from fedduet.lm.dp.clipped_sums import ClippedSum, Engine, LossBatch, row_losses, without_dropout
from fedduet.lm.dp.weight_uses import LayerInput, Product, Use, is_known, squared_norms, uses_of
from fedduet.lm.models.load import eager_attention, trainable
from peft import PeftModel
from torch import nn


class GradientRecorder:
    """Watches the layers of a model that own trained weights, and holds what one backward pass
    leaves in their uses."""

    def __init__(self, model: Any) -> None:
        self.names = {id(parameter): name for name, parameter in trainable(model).items()}
        self.layers, owners = [], Counter()
        for layer in model.modules():
            own = [
                id(parameter)
                for parameter in layer.parameters(recurse=False)
                if id(parameter) in self.names
            ]
            if own and is_known(layer):
                self.layers.append(layer)
                owners.update(own)
        if unknown := [name for key, name in self.names.items() if key not in owners]:
            kind = type(model.get_submodule(unknown[0].rpartition(".")[0])).__name__
            raise ValueError(
                f"book-keeping does not know how to train {', '.join(unknown)} ({kind}); set"
                " generator.engine=vmap"
            )
        self.shared = {key for key, count in owners.items() if count > 1}
        self.rows, self.units, self.uses = 0, 0, defaultdict(list)
        self.last: tuple[torch.Tensor, LayerInput] | None = None

    def watch(
        self, layer: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        """A forward hook: asks for the gradient of the output."""
        # the latter is the first pass of a checkpoint
        if not self.rows or not torch.is_grad_enabled():
            return None
        if not output.requires_grad:
            output.requires_grad_()
        output.register_hook(lambda gradient: self.enter(layer, arguments[0], gradient))
        return output

    def enter(self, layer: nn.Module, seen: torch.Tensor, gradient: torch.Tensor) -> None:
        """Keeps a use. A product under autocast saw its input in the dtype of its output, and so is
        it kept."""
        if len(seen) != self.rows or len(gradient) != self.rows:
            raise ValueError(
                f"{type(layer).__name__} saw inputs {list(seen.shape)} for {self.rows} rows;"
                " book-keeping needs [B, ...]"
            )
        gradient = gradient.reshape(self.units, -1, gradient.shape[-1])
        # q, k and v see the same
        if self.last is None or self.last[0] is not seen or self.last[1].dtype != gradient.dtype:
            places = (-1,) if isinstance(layer, nn.Embedding) else (-1, seen.shape[-1])
            self.last = seen, LayerInput(seen.detach().reshape(self.units, *places), gradient.dtype)
        shared = any(id(parameter) in self.shared for parameter in layer.parameters(recurse=False))
        for kind, use in uses_of(layer, self.last[1], gradient, shared).items():
            if name := self.names.get(id(getattr(layer, kind))):
                self.uses[name].append(use)

    @contextmanager
    def open(self, batch: LossBatch) -> Iterator[dict[str, list[Use]]]:
        """Inside the `with`, forward and backward of a batch enter their uses, by the weight's
        name."""
        self.rows, self.units, self.uses = len(batch.ids), batch.units, defaultdict(list)
        try:
            yield self.uses
        finally:
            self.rows, self.units, self.uses, self.last = 0, 0, defaultdict(list), None


@contextmanager
def book_keeping_engine(model: Any, autocast: bool) -> Iterator[Engine]:
    """One forward and one backward pass without weight gradients. Raises ValueError for layers it
    does not know, by name.

    It starts with a trial on counted tokens (nothing private): a model that uses a weight where the
    books do not see it, or normalises in another way than they think, is refused by ValueError.
    """
    books, parameters = GradientRecorder(model), trainable(model)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    known = inspect.signature(inner.forward).parameters
    extra = ["position_ids"] * ("position_ids" in known) + ["token_type_ids"] * hasattr(
        inner.config, "type_vocab_size"
    )

    def losses(batch: LossBatch, autocast: bool, extra: Sequence[str] = extra) -> torch.Tensor:
        # models' own have batch size 1
        columns = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand(batch.ids.shape)
        whole = {
            "position_ids": columns,
            "token_type_ids": torch.zeros_like(batch.ids),
            "attention_mask": torch.ones_like(batch.ids),
        }
        inputs = {name: whole[name] for name in (*extra, "attention_mask")}
        with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=autocast):
            logits = model(input_ids=batch.ids, use_cache=False, **inputs).logits
        return row_losses(logits, batch.ids, batch.weights)

    def add(batch: LossBatch, total: ClippedSum, autocast: bool = autocast) -> None:
        with frozen(parameters), books.open(batch) as uses:
            losses(batch, autocast).sum().backward()
        norms = (
            torch.stack([squared_norms(kept) for kept in uses.values()])
            .sum(dim=0)
            .clamp_min(0)
            .sqrt()
        )
        if rounding := [
            use.rounding for kept in uses.values() for use in kept if isinstance(use, Product)
        ]:
            norms = norms + torch.stack(rounding).norm(dim=0)
        if not norms.isfinite().all():
            if norms.isfinite().any():
                add(batch.only(norms.isfinite()), total, autocast)
            return
        factors = total.factors(norms)
        for name, kept in uses.items():
            for use in kept:
                use.add(total.sums[name], factors)

    def trial() -> None:
        ids = (
            torch.arange(16, device=next(iter(parameters.values())).device).view(2, 8)
            % inner.config.get_text_config().vocab_size
        )
        batch = LossBatch(ids, torch.full((2, 7), 1 / 7, device=ids.device))
        plain = losses(batch, False, extra=())
        rows = [
            torch.autograd.grad(
                loss, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            for loss in plain
        ]
        norms = [torch.stack([g.norm() for g in row]).norm() for row in rows]
        total = ClippedSum(parameters, float(min(norms)) / 2)
        add(batch, total, False)
        for place, (name, found) in enumerate(total.sums.items()):
            right = sum(
                row[place].float() * (total.clip / norm)
                for row, norm in zip(rows, norms, strict=True)
            )
            if float((found - right).norm()) > 1e-3 * total.clip:
                raise ValueError(
                    f"book-keeping does not see all of what {name} does in {type(inner).__name__};"
                    " set generator.engine=vmap"
                )

    with ExitStack() as stack:
        stack.enter_context(eager_attention(model))
        model.eval()
        hooks = [layer.register_forward_hook(books.watch) for layer in books.layers]
        stack.callback(lambda: [hook.remove() for hook in hooks])
        trial()
        # only done in training mode
        if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
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
