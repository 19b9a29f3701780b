"""Decoding for Llama models in plain torch: fused projections and a cache in place, several times the speed of the library's loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

ROPES = ("default", "linear", "llama3")  # rotary kinds whose angles do not depend on the sequence's length


def is_plain_llama(model: Any) -> bool:
    """Whether `LlamaStepper` computes what `model` does: the Llama architecture without biases or other variations."""
    config = model.config
    return (
        type(model).__name__ == "LlamaForCausalLM"
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act == "silu"
        and (config.rope_parameters or {}).get("rope_type", "default") in ROPES
        and model.lm_head.bias is None
        and all(type(layer.self_attn.q_proj) is torch.nn.Linear for layer in model.model.layers)
    )


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
        batch, width = ids.shape
        shape = (len(self.layers), 2, batch, self.kv, width + room, self.size)
        self._cache = torch.empty(shape, dtype=self.dtype, device=ids.device)
        self._live, self._length = batch, 0
        self._seen = torch.ones(batch, width + room, dtype=torch.bool, device=ids.device)
        self._seen[:, :width] = mask.bool()
        self._padded = not bool(mask.all())
        self._positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
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
        for place, row in enumerate(rows.tolist()):
            if place != row:
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
