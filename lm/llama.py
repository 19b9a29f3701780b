"""Decoding for Llama models in plain torch: fused projections and a cache in place, several times the speed of the library's loop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from lm.batch import positions

ROPES = ("default", "linear", "llama3")  # rotary kinds whose angles do not depend on the sequence's length
PARTS = {
    *("LlamaForCausalLM", "LlamaModel", "LlamaDecoderLayer", "LlamaAttention", "LlamaMLP", "LlamaRMSNorm", "LlamaRotaryEmbedding"),
    *("SiLUActivation", "Linear", "Embedding", "ModuleList"),
}
HOMES = ("transformers.models.llama.", "transformers.activations", "torch.nn.modules.")
COPIED = 0.25  # larger weights, as a share of the device's memory, are not copied for speed [O]


def is_plain_llama(model: Any) -> bool:
    """Whether `LlamaStepper` computes what `model` does: the Llama architecture, all its parts as they come, without biases.

    Adapters, quantised weights, hooks, replaced `forward`s (as for a model spread over devices) and mixed precision are not plain.
    """
    return (
        type(model).__name__ == "LlamaForCausalLM"
        and (model.config.rope_parameters or {}).get("rope_type", "default") in ROPES
        and all(_is_plain_part(part) for part in model.modules())
        and all(type(weight) is torch.nn.Parameter and weight.dtype == model.dtype for weight in model.parameters())
    )


def _is_plain_part(part: torch.nn.Module) -> bool:
    kind, changed = type(part), part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)
    return kind.__name__ in PARTS and kind.__module__.startswith(HOMES) and not changed and getattr(part, "bias", None) is None


def affords_copies(model: Any) -> bool:
    """Whether the device has memory for a second copy of the weights and then room to work."""
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(weight.nbytes for weight in model.parameters()) <= COPIED * memory


@dataclass(frozen=True)
class _Layer:
    qkv: torch.Tensor  # [(heads + 2 kv heads) * head size, hidden], the norm's weight folded in
    out: torch.Tensor
    gate_up: torch.Tensor  # [2 * intermediate, hidden], the norm's weight folded in
    down: torch.Tensor


class LlamaStepper:
    """A `lm.decode.Stepper` over copies of a Llama's weights. The logits agree with the model's to rounding (a test holds it to it)."""

    compact_at = 1.0  # a row leaves by moving one row's cache

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        config = model.config
        self.dtype = dtype or model.dtype
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.size = model.model.layers[0].self_attn.head_dim
        self.hidden, self.eps = config.hidden_size, config.rms_norm_eps
        self.rotary = model.model.rotary_emb
        self.embedding = model.get_input_embeddings().weight.detach().to(self.dtype)
        self.head = self._folded(model.model.norm, model.lm_head)
        self.layers = [
            _Layer(
                self._folded(layer.input_layernorm, *(getattr(layer.self_attn, f"{name}_proj") for name in "qkv")),
                layer.self_attn.o_proj.weight.detach().to(self.dtype),
                self._folded(layer.post_attention_layernorm, layer.mlp.gate_proj, layer.mlp.up_proj),
                layer.mlp.down_proj.weight.detach().to(self.dtype),
            )
            for layer in model.model.layers
        ]

    def _folded(self, norm: Any, *projections: Any) -> torch.Tensor:
        weights = torch.cat([projection.weight.detach().float() for projection in projections])
        return (weights * norm.weight.detach().float()).to(self.dtype)

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        ids, mask = ids.to(self.head.device), mask.to(self.head.device)
        batch, width = ids.shape
        self._cache = None  # the batch before makes room
        shape = (len(self.layers), 2, batch, self.kv, width + room, self.size)
        self._cache = torch.empty(shape, dtype=self.dtype, device=ids.device)
        self._live, self._length = batch, 0
        self._seen = torch.ones(batch, width + room, dtype=torch.bool, device=ids.device)
        self._seen[:, :width] = mask.bool()
        self._padded = not bool(mask.all())
        self._positions = positions(mask)
        angles = torch.arange(width + room, device=ids.device)[None]
        cos, sin = self.rotary(torch.empty(0, dtype=torch.float32, device=ids.device), angles)
        self._cos, self._sin = cos[0].to(self.dtype), sin[0].to(self.dtype)
        causal = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        allowed = causal & self._seen[:, None, None, :width]
        allowed |= torch.eye(width, dtype=torch.bool, device=ids.device)  # a pad sees itself, so that no row of the softmax is empty
        return self._run(ids, self._positions, allowed)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._positions = self._positions[:, -1:] + 1
        allowed = self._seen[:, None, None, : self._length + 1] if self._padded else None
        return self._run(tokens[:, None], self._positions, allowed)

    def keep(self, rows: torch.Tensor) -> None:
        moves = [(place, row) for place, row in enumerate(rows.tolist()) if place != row]
        if any(row < len(rows) for _, row in moves):  # a row comes twice, or would be written over before it has moved
            self._cache, moves = self._cache[:, :, rows], []
        for place, row in moves:
            self._cache[:, :, place, :, : self._length] = self._cache[:, :, row, :, : self._length]
        self._live = len(rows)
        self._seen, self._positions = self._seen[rows], self._positions[rows]

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor:
        batch, width = ids.shape
        heads, kv, size, start = self.heads, self.kv, self.size, self._length
        end = self._length = start + width
        cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]  # [B, T, 1, head size]
        x = self.embedding[ids]
        for layer, cache in zip(self.layers, self._cache[:, :, : self._live], strict=True):
            mixed = functional.linear(functional.rms_norm(x, (self.hidden,), eps=self.eps), layer.qkv)
            mixed = mixed.view(batch, width, heads + 2 * kv, size)
            turned = mixed[:, :, : heads + kv]
            low, high = turned.chunk(2, dim=-1)
            turned = turned * cos + torch.cat([-high, low], dim=-1) * sin
            cache[0][:, :, start:end] = turned[:, :, heads:].transpose(1, 2)
            cache[1][:, :, start:end] = mixed[:, :, heads + kv :].transpose(1, 2)
            attended = functional.scaled_dot_product_attention(
                turned[:, :, :heads].transpose(1, 2),
                cache[0][:, :, :end],
                cache[1][:, :, :end],
                attn_mask=allowed,
                enable_gqa=heads != kv,
            )
            x = x + functional.linear(attended.transpose(1, 2).reshape(batch, width, heads * size), layer.out)
            gate, up = functional.linear(functional.rms_norm(x, (self.hidden,), eps=self.eps), layer.gate_up).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(functional.rms_norm(x[:, -1], (self.hidden,), eps=self.eps), self.head).float()
