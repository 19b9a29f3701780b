"""Decoding for Llama models in plain torch: fused projections and a cache in place, several times
the speed of the library's loop."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from fedduet.lm.decoding.int8 import Watched
from fedduet.lm.decoding.prefix import Read, shared
from fedduet.lm.decoding.products import Product, product
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


@dataclass(frozen=True)
class _Layer:
    qkv: Product  # [(heads + 2 kv heads) * head size, hidden], the norm's weight folded in
    out: Product
    gate_up: Product  # [2 * intermediate, hidden], the norm's weight folded in
    down: Product


class LlamaStepper:
    """A `fedduet.lm.decoding.stepper.Continuous` stepper over copies of a Llama's weights. The
    logits agree with the model's to rounding (a test says so). `int8`: products of the layers are
    in int8, but for the last of each, whose loss is the largest, and the head.

    The cache is [layers, key and value, rows, heads, columns, head size]; a row's tokens stand in
    the columns from its start to the last. What prompts that begin together have in common at their
    beginnings, with each other or with the prompt before them, is read once; `read` counts the
    prompts' tokens that were.
    """

    compact_at = 1.0  # a row leaves by moving one row's cache
    read = 0
    _before: Read | None = None  # the last prompt of this batch

    def __init__(self, model: Any, dtype: torch.dtype | None = None, int8: bool = False) -> None:
        config = model.config
        self.dtype = dtype or model.dtype
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.size = model.model.layers[0].self_attn.head_dim
        self.hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.rotary = model.model.rotary_emb
        self._length = self._first = 0
        self.embedding = model.get_input_embeddings().weight.detach().to(self.dtype)
        self.device = self.embedding.device
        self.head = product(self._folded(model.model.norm, model.lm_head))
        kind = Watched if int8 else product
        self.layers = [
            _Layer(
                kind(
                    self._folded(
                        layer.input_layernorm,
                        *(getattr(layer.self_attn, f"{name}_proj") for name in "qkv"),
                    )
                ),
                kind(layer.self_attn.o_proj.weight.detach().to(self.dtype)),
                kind(
                    self._folded(
                        layer.post_attention_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj
                    )
                ),
                product(layer.mlp.down_proj.weight.detach().to(self.dtype)),
            )
            for layer in model.model.layers
        ]
        if int8:
            self._quantise()

    @torch.inference_mode()
    def _quantise(self) -> None:
        """From watched products to products in int8, after a look at which channels are large:
        the same for all texts (Dettmers et al. 2022), so random tokens show them."""
        coins = torch.Generator().manual_seed(0)
        ids = torch.randint(len(self.embedding), (8, 24), generator=coins)
        self.prefill(ids, torch.ones_like(ids), 0)
        self.layers = [
            replace(
                layer,
                qkv=layer.qkv.in_int8(),
                out=layer.out.in_int8(),
                gate_up=layer.gate_up.in_int8(),
            )
            for layer in self.layers
        ]
        self._cache, self._before, self.read = None, None, 0

    def _folded(self, norm: Any, *projections: Any) -> torch.Tensor:
        weights = torch.cat([projection.weight.detach().float() for projection in projections])
        return (weights * norm.weight.detach().float()).to(self.dtype)

    def _laid_out(self, projection: Any) -> Product:
        return product(projection.weight.detach().to(self.dtype))

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
        self._cache = self._before = None  # the batch before makes room
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
        starts, places = (mask == 0).sum(dim=1), positions(mask)
        rows, begin = slice(live, live + batch), self._length - width
        prompts = [row[start:] for row, start in zip(ids.tolist(), starts.tolist(), strict=True)]
        # shorter rows read their own tokens of what is shared where longer ones have others
        once, known = shared(prompts, self._before)
        if once:
            prefix = self._read_once(prompts[0][:once], known)
            cache = self._cache[:, :, rows, :, begin : begin + once]
            cache.zero_()
            for row, start in enumerate(starts.tolist()):
                cache[:, :, row, :, start:] = prefix[:, :, 0, :, : max(0, once - start)]
        columns = torch.arange(width, device=ids.device)
        seen, own = columns[None, :], columns[once:, None]
        # a pad sees itself, so that no row of the softmax is empty
        allowed = (seen <= own) & (seen >= starts[:, None, None]) | (seen == own)
        logits = self._run(
            ids[:, once:],
            self._cache[:, :, rows],
            places[:, once:],
            allowed[:, None],
            begin + once,
            begin,
        )
        self.read += int(mask[:, once:].sum())
        last = self._cache[:, :, live + batch - 1 : live + batch, :, : self._length]
        self._before = Read(prompts[-1], last[..., self._length - len(prompts[-1]) :, :].clone())
        self._starts = torch.cat([self._starts, begin + starts])
        self._positions = torch.cat([self._positions, places[:, -1]])
        self._look()
        return logits

    def _read_once(self, tokens: list[int], known: int) -> torch.Tensor:
        """Keys and values [layers, 2, 1, heads, tokens, head size] of what the prompts have in
        common, `known` of them from the prompt before."""
        layers, length = len(self.layers), len(tokens)
        cache = self._cache.new_empty(layers, 2, 1, self.kv, length, self.size)
        if known:
            cache[..., :known, :] = self._before.cache[..., :known, :]
        if known < length:
            places = torch.arange(length, device=self.device)
            allowed = (places[None, :] <= places[known:, None])[None, None]
            ids = torch.tensor([tokens[known:]], device=self.device)
            self._run(ids, cache, places[None, known:], allowed, known, 0)
            self.read += length - known
        return cache

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
        live = self._cache[:, :, : len(tokens)]
        return self._run(
            tokens[:, None], live, self._positions[:, None], allowed, end - 1, self._first
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
        cache: torch.Tensor,
        positions: torch.Tensor,
        allowed: torch.Tensor | None,
        start: int,
        first: int,
    ) -> torch.Tensor:
        """Feeds ids [B, T] to these rows of a cache at the columns from `start` on; they see the
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
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            mixed = layer.qkv(self._normed(x))
            mixed = mixed.view(batch, width, heads + 2 * kv, size)
            turned = mixed[:, :, : heads + kv]
            low, high = turned.chunk(2, dim=-1)
            turned = turned * cos + torch.cat([-high, low], dim=-1) * sin
            keys[:, :, start:end] = turned[:, :, heads:].transpose(1, 2)
            values[:, :, start:end] = mixed[:, :, heads + kv :].transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                turned[:, :, :heads].transpose(1, 2),
                keys[:, :, first:end],
                values[:, :, first:end],
                attn_mask=allowed,
                enable_gqa=heads != kv,
            )
            x = x + layer.out(attended.transpose(1, 2).reshape(batch, width, heads * size))
            gate, up = layer.gate_up(self._normed(x)).chunk(2, dim=-1)
            x = x + layer.down(functional.silu(gate) * up)
        return self.head(self._normed(x[:, -1])).float()

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (self.hidden,), eps=self.eps)
