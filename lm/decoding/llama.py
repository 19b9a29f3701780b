"""Decoding for Llama models in plain torch: fused projections and a cache in place, several times
the speed of the library's loop."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fedduet.lm.models.batch import positions
from torch.nn import functional

# rotary kinds whose angles do not depend on the sequence's length
ROPES = ("default", "linear", "llama3")
PARTS = {
    *(
        "LlamaForCausalLM",
        "LlamaModel",
        "LlamaDecoderLayer",
        "LlamaAttention",
        "LlamaMLP",
        "LlamaRMSNorm",
        "LlamaRotaryEmbedding",
    ),
    *("SiLUActivation", "Linear", "Embedding", "ModuleList"),
}
HOMES = ("transformers.models.llama.", "transformers.activations", "torch.nn.modules.")
TILED_FOR = 64  # rows of a product that the layout of weights is chosen for; others work as well
COPIED = 0.25  # larger weights, as a share of the device's memory, are not copied for speed [O]


def is_plain_llama(model: Any) -> bool:
    """Whether `LlamaStepper` computes what `model` does: the Llama architecture, all its parts as
    they come, without biases.

    Adapters, quantised weights, hooks, replaced `forward`s (as for a model spread over devices) and
    mixed precision are not plain.
    """
    return (
        type(model).__name__ == "LlamaForCausalLM"
        and (model.config.rope_parameters or {}).get("rope_type", "default") in ROPES
        and all(_is_plain_part(part) for part in model.modules())
        and all(
            type(weight) is torch.nn.Parameter and weight.dtype == model.dtype
            for weight in model.parameters()
        )
    )


def _is_plain_part(part: torch.nn.Module) -> bool:
    kind, changed = (
        type(part),
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part),
    )
    return (
        kind.__name__ in PARTS
        and kind.__module__.startswith(HOMES)
        and not changed
        and getattr(part, "bias", None) is None
    )


def affords_copies(model: Any) -> bool:
    """Whether the device has memory for a second copy of the weights and then room to work."""
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(weight.nbytes for weight in model.parameters()) <= COPIED * memory


Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    qkv: Product  # [(heads + 2 kv heads) * head size, hidden], the norm's weight folded in
    out: Product
    gate_up: Product  # [2 * intermediate, hidden], the norm's weight folded in
    down: Product


def product(weight: torch.Tensor) -> Product:
    """x -> x @ weight.T. On CPUs that multiply in bf16 the weight is laid out once as oneDNN wants
    it, not in every call; same bits."""
    if (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        tiled = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TILED_FOR)
        # what torch.compile makes of a linear layer
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, tiled, None, "none", [], "")
    return partial(functional.linear, weight=weight)


class LlamaStepper:
    """A `fedduet.lm.decoding.stepper.Continuous` stepper over copies of a Llama's weights. The
    logits agree with the model's to rounding (a test says so).

    The cache is [layers, key and value, rows, heads, columns, head size]; a row's tokens stand in
    the columns from its start to the last.
    """

    compact_at = 1.0  # a row leaves by moving one row's cache

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        config = model.config
        self.dtype = dtype or model.dtype
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.size = model.model.layers[0].self_attn.head_dim
        self.hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.rotary = model.model.rotary_emb
        self._length = self._first = 0
        self.embedding = model.get_input_embeddings().weight.detach().to(self.dtype)
        self.device = self.embedding.device
        self.head = self._folded(model.model.norm, model.lm_head)
        self.layers = [
            _Layer(
                self._folded(
                    layer.input_layernorm,
                    *(getattr(layer.self_attn, f"{name}_proj") for name in "qkv"),
                ),
                product(layer.self_attn.o_proj.weight.detach().to(self.dtype)),
                self._folded(
                    layer.post_attention_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj
                ),
                product(layer.mlp.down_proj.weight.detach().to(self.dtype)),
            )
            for layer in model.model.layers
        ]

    def _folded(self, norm: Any, *projections: Any) -> Product:
        weights = torch.cat([projection.weight.detach().float() for projection in projections])
        return product((weights * norm.weight.detach().float()).to(self.dtype))

    @property
    def width(self) -> int:
        """Columns of the cache that live rows take: a prompt of at most so many tokens may be
        admitted."""
        return self._length - self._first

    def fork(self) -> LlamaStepper:
        """Another one over the same weights."""
        other = copy.copy(self)
        other._cache = None
        return other

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        ids, mask = ids.to(self.device), mask.to(self.device)
        batch, width = ids.shape
        self._cache = None  # the batch before makes room
        shape = (len(self.layers), 2, batch, self.kv, width + room, self.size)
        self._cache = torch.empty(shape, dtype=self.dtype, device=ids.device)
        angles = torch.arange(width + room, device=ids.device)[None]
        cos, sin = self.rotary(torch.empty(0, dtype=torch.float32, device=ids.device), angles)
        self._cos, self._sin = cos[0].to(self.dtype), sin[0].to(self.dtype)
        self._columns = angles
        self._length, self._starts, self._positions = width, mask.new_empty(0), mask.new_empty(0)
        return self._begin(ids, mask)

    def admit(self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Prompts end where the live rows do, so that all go on in the same column."""
        live, width, rows = len(self._starts), ids.shape[1], rows.to(self.device)
        logits = self._begin(ids.to(self.device), mask.to(self.device))
        begin, places = self._length - width, slice(live, live + len(rows))
        if rows.tolist() != list(range(len(ids))):
            part = self._cache[..., begin : self._length, :]
            part[:, :, places] = part[:, :, live + rows]
            self._stay(torch.cat([torch.arange(live, device=self.device), live + rows]))
        # masked, but what is not a number would show through a mask
        self._cache[:, :, places, :, self._first : begin] = 0
        return logits[rows]

    def _begin(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Prompts into the cache, behind the live rows and up to the column that is next."""
        live, (batch, width) = len(self._starts), ids.shape
        starts = (mask == 0).sum(dim=1)
        places, columns = positions(mask), torch.arange(width, device=ids.device)
        allowed = (columns[None, :] <= columns[:, None]) & (
            columns[None, None, :] >= starts[:, None, None]
        )
        # a pad sees itself, so that no row of the softmax is empty
        allowed |= torch.eye(width, dtype=torch.bool, device=ids.device)
        begin = self._length - width
        logits = self._run(ids, places, allowed[:, None], slice(live, live + batch), begin, begin)
        self._starts = torch.cat([self._starts, begin + starts])
        self._positions = torch.cat([self._positions, places[:, -1]])
        self._look()
        return logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._length == self._cache.shape[4]:
            self._move_to_the_beginning()
        self._positions = self._positions + 1
        end = self._length + 1
        allowed = (
            (self._columns[:, self._first : end] >= self._starts[:, None])[:, None, None]
            if self._uneven
            else None
        )
        self._length = end
        return self._run(
            tokens[:, None],
            self._positions[:, None],
            allowed,
            slice(0, len(tokens)),
            end - 1,
            self._first,
        )

    def keep(self, rows: torch.Tensor) -> None:
        moves = [(place, row) for place, row in enumerate(rows.tolist()) if place != row]
        # a row comes twice, or would be written over before it has moved
        if any(row < len(rows) for _, row in moves):
            self._cache, moves = self._cache[:, :, rows], []
        for place, row in moves:
            self._cache[:, :, place, :, self._first : self._length] = self._cache[
                :, :, row, :, self._first : self._length
            ]
        self._stay(rows)

    def _stay(self, rows: torch.Tensor) -> None:
        self._starts, self._positions = self._starts[rows], self._positions[rows]
        self._look()

    def _look(self) -> None:
        """The first column that a live row has, and whether there are rows that begin later."""
        self._first, last = (int(edge) for edge in self._starts.aminmax())
        self._uneven = last > self._first

    def _move_to_the_beginning(self) -> None:
        by, live = self._first, len(self._starts)
        for layer in self._cache:
            layer[:, :live, :, : self._length - by] = layer[:, :live, :, by : self._length].clone()
        self._length, self._starts, self._first = self._length - by, self._starts - by, 0

    def _run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        allowed: torch.Tensor | None,
        rows: slice,
        start: int,
        first: int,
    ) -> torch.Tensor:
        """Feeds ids [B, T] to the cache's `rows` at the columns from `start` on; they see the
        columns from `first` on."""
        batch, width = ids.shape
        heads, kv, size, end = self.heads, self.kv, self.size, start + width
        # [B, T, 1, head size]
        cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        if allowed is not None:
            allowed = torch.zeros(allowed.shape, dtype=self.dtype, device=ids.device).masked_fill_(
                ~allowed, -torch.inf
            )
        x = self.embedding[ids]
        for layer, cache in zip(self.layers, self._cache[:, :, rows], strict=True):
            mixed = layer.qkv(self._normed(x))
            mixed = mixed.view(batch, width, heads + 2 * kv, size)
            turned = mixed[:, :, : heads + kv]
            low, high = turned.chunk(2, dim=-1)
            turned = turned * cos + torch.cat([-high, low], dim=-1) * sin
            cache[0][:, :, start:end] = turned[:, :, heads:].transpose(1, 2)
            cache[1][:, :, start:end] = mixed[:, :, heads + kv :].transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                turned[:, :, :heads].transpose(1, 2),
                cache[0][:, :, first:end],
                cache[1][:, :, first:end],
                attn_mask=allowed,
                enable_gqa=heads != kv,
            )
            x = x + layer.out(attended.transpose(1, 2).reshape(batch, width, heads * size))
            gate, up = layer.gate_up(self._normed(x)).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        return self.head(self._normed(x[:, -1])).float()

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.hidden,), eps=self.eps)
