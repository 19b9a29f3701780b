"""What a decode loop needs of a causal LM: a batch with a cache that takes one token for each row
at a time."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Protocol, runtime_checkable

import torch
from fedduet.lm.decoding.int8 import int8_pays
from fedduet.lm.decoding.key_value_cache import roomy_cache
from fedduet.lm.decoding.llama import LlamaStepper, affords_copies, is_plain_llama
from fedduet.lm.models.batch import positions
from fedduet.lm.models.load import merged
from fedduet.lm.models.precision import has_fast_int8
from peft import PeftModel

# weights below which a step's time is not that of its products, and nothing is measured [O]
MEASURED_FROM = 50_000_000


class Stepper(Protocol):
    """A causal LM with a cache: what the loop needs of it. Prompts are padded on the left."""

    compact_at: float  # the loop calls `keep` when the share of live rows has fallen to this

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        """Starts a batch: ids and mask int64 [B, T] on any device, `room` steps to come. Next-token
        logits [B, V], float32."""
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds one token for each row, int64 [B]. Next-token logits [B, V], float32."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """`rows` (int64 [b]) go on, in this order; a row may come several times, to go on in
        several ways."""
        ...


@runtime_checkable
class Continuous(Stepper, Protocol):
    """A stepper whose batch takes in new rows while others go on, and that can be had several times
    over the same weights."""

    device: torch.device
    width: int  # prompts of at most so many tokens can be taken in now

    def admit(self, ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Adds rows behind those that are there, as many as have left: row i begins with prompt
        rows[i] of ids and mask int64 [b, T]. Next-token logits [len(rows), V], float32."""
        ...

    def fork(self) -> Continuous:
        """Another one of the same weights, for another thread."""
        ...


class AnyStepper:
    """Any Hugging Face causal LM through its own forward, adapters as they are."""

    compact_at = 0.75  # selecting rows copies the whole cache

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model = model if dtype in (None, model.dtype) else copy.deepcopy(model).to(dtype)

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        self._cache = None  # the batch before makes room
        self._cache, self._length = (
            roomy_cache(self.model.config, ids.shape[1] + room),
            ids.shape[1],
        )
        self._mask, self._positions = (
            torch.cat([mask, mask.new_ones(len(mask), room)], dim=1),
            positions(mask),
        )
        return self._run(ids)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._length, self._positions = self._length + 1, self._positions[:, -1:] + 1
        return self._run(tokens[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        mask = self._mask[:, : self._length]
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": self._positions,
            "logits_to_keep": 1,
        }
        return (
            forward(self.model, **inputs, past_key_values=self._cache, use_cache=True)
            .logits[:, -1]
            .float()
        )


def forward(model: Any, **inputs: Any) -> Any:
    """The model's output; arguments that its architecture does not know (position_ids,
    logits_to_keep) are left out."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    known = inspect.signature(inner.forward).parameters
    return model(**{name: value for name, value in inputs.items() if name in known})


def stepper(model: Any, dtype: torch.dtype | None = None, precision: str = "") -> Stepper:
    """The fastest stepper for `model`, with LoRA folded in; weights are copied in `dtype`. Make it
    anew when the weights change. `precision` "int8": plain Llamas run in int8 on a CPU; "auto":
    where they are large enough and a measurement says that it pays."""
    plain = merged(model)
    if not (is_plain_llama(plain) and affords_copies(plain)):
        return AnyStepper(plain, dtype)
    dtype, large = dtype or plain.dtype, weights_of(plain) >= MEASURED_FROM
    config = plain.config
    int8 = runs_in_int8(plain) and (
        precision == "int8"
        or (
            (precision == "auto" and large)
            and int8_pays(2 * config.intermediate_size, config.hidden_size, dtype)
        )
    )
    return LlamaStepper(plain, dtype, int8)


def runs_in_int8(model: Any) -> bool:
    """Whether `stepper` can put the products of `model` in int8 on this machine."""
    there = has_fast_int8(model.device.type)
    return there and is_plain_llama(model) and affords_copies(model)


def weights_of(model: Any) -> int:
    """How many weights a model has."""
    return sum(weight.numel() for weight in model.parameters())
