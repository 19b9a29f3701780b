"""One decode loop for every causal LM: rows with their own prompts, sampling, seeds and stop conditions, in one shrinking batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lm.batch import pad
from lm.draw import draw, uniforms
from lm.llama import LlamaStepper, is_plain_llama
from lm.load import merged


@dataclass(frozen=True)
class Ask:
    """One row to continue. `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 are off; `seed` fixes the row's own random stream.

    `stopped` is asked after every new token with all new tokens of the row so far; True ends the row there.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stopped: Callable[[list[int]], bool] | None = None


@dataclass(frozen=True)
class Answer:
    """New tokens, the end token not among them. `finish`: "end" (end token), "stopped" (by the row's own test) or "length"."""

    tokens: tuple[int, ...]
    finish: str


class Stepper(Protocol):
    """A causal LM with a cache: what the loop needs of it. Prompts are padded on the left."""

    compact_at: float  # the loop calls `keep` when the share of live rows has fallen to this

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        """Starts a batch: ids and mask int64 [B, T], `room` steps to come. Next-token logits [B, V], float32."""
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds one token for each row, int64 [B]. Next-token logits [B, V], float32."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Only `rows` (int64 [b], distinct, in the new order) go on."""
        ...


class AnyStepper:
    """Any Hugging Face causal LM through its own forward and cache."""

    compact_at = 0.75  # selecting rows copies the whole cache

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model = model if dtype in (None, model.dtype) else copy.deepcopy(model).to(dtype)
        self._known = inspect.signature(self.model.forward).parameters

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        self._cache = None
        self._mask = mask
        self._positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return self._run(ids)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return self._run(tokens[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": ids, "attention_mask": self._mask, "position_ids": self._positions, "logits_to_keep": 1}
        known = {name: value for name, value in inputs.items() if name in self._known}
        output = self.model(**known, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        return output.logits[:, -1].float()


def stepper(model: Any, dtype: torch.dtype | None = None) -> Stepper:
    """The fastest stepper for `model`, with LoRA folded in; weights are copied in `dtype`. Make it anew when the weights change."""
    plain = merged(model)
    return LlamaStepper(plain, dtype) if is_plain_llama(plain) else AnyStepper(plain, dtype)


@torch.inference_mode()
def decode(
    run: Stepper,
    asks: Sequence[Ask],
    ends: AbstractSet[int],
    batch_size: int = 64,
    device: str = "cpu",
    done: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """One answer for each ask, in their order; `done(number, answer)` is called as each row ends.

    Rows are batched longest first, at most `batch_size` together, with others that draw the same way. A row's answer depends on its
    own seed only, up to the rounding of products in batches of another shape (which in float32 all but never shows).
    Raises ValueError for an empty prompt.
    """
    if empty := [number for number, ask in enumerate(asks) if not ask.prompt]:
        raise ValueError(f"row {empty[0]}: found an empty prompt; a causal LM needs at least one token to continue from")
    answers: list[Answer | None] = [None] * len(asks)

    def finish(number: int, answer: Answer) -> None:
        answers[number] = answer
        if done:
            done(number, answer)

    kinds: dict[tuple, list[int]] = {}
    for number, ask in enumerate(asks):
        if ask.max_new_tokens < 1:
            finish(number, Answer((), "length"))
        else:
            kinds.setdefault((ask.temperature == 0, ask.top_k, ask.top_p >= 1), []).append(number)
    for numbers in kinds.values():
        numbers.sort(key=lambda number: (-len(asks[number].prompt), -asks[number].max_new_tokens))
        for start in range(0, len(numbers), batch_size):
            _decode_batch(run, numbers[start : start + batch_size], asks, ends, device, finish)
    return answers  # type: ignore[return-value]


def _decode_batch(
    run: Stepper, numbers: list[int], asks: Sequence[Ask], ends: AbstractSet[int], device: str, finish: Callable[[int, Answer], None]
) -> None:
    rows = [asks[number] for number in numbers]
    ids, mask = pad([row.prompt for row in rows], 0, left=True)
    steps = max(row.max_new_tokens for row in rows)
    stream = torch.zeros(len(rows), steps)
    for i, row in enumerate(rows):
        stream[i, : row.max_new_tokens] = uniforms(row.seed, row.max_new_tokens)
    stream = stream.to(device)
    temperature = torch.tensor([row.temperature for row in rows], device=device)
    top_p = torch.tensor([row.top_p for row in rows], device=device)
    top_k, greedy = rows[0].top_k, rows[0].temperature == 0
    slots: list[int | None] = list(range(len(rows)))  # the row in each place of the batch; None: it has ended
    new: list[list[int]] = [[] for _ in rows]
    logits = run.prefill(ids.to(device), mask.to(device), steps)
    for step in range(steps):
        drawn = logits.argmax(dim=-1) if greedy else draw(logits, stream[:, step], temperature, top_k, top_p)
        for place, token in enumerate(drawn.tolist()):
            i = slots[place]
            if i is None:
                continue
            if token not in ends:
                new[i].append(token)
            if how := _ending(rows[i], new[i], token in ends):
                finish(numbers[i], Answer(tuple(new[i]), how))
                slots[place] = None
        live = [place for place, i in enumerate(slots) if i is not None]
        if not live:
            return
        if len(live) < len(slots) and len(live) <= run.compact_at * len(slots):
            places = _close_gaps(live)
            keep = torch.tensor(places, device=device)
            run.keep(keep)
            drawn, stream, temperature, top_p = drawn[keep], stream[keep], temperature[keep], top_p[keep]
            slots = [slots[place] for place in places]
        logits = run.step(drawn)


def _ending(ask: Ask, new: list[int], at_end: bool) -> str:
    """Why the row ends after its last token, or "" when it goes on."""
    if at_end:
        return "end"
    if ask.stopped and ask.stopped(new):
        return "stopped"
    return "length" if len(new) == ask.max_new_tokens else ""


def _close_gaps(live: list[int]) -> list[int]:
    """The live places, ordered so that as many as possible stay where they are: gaps are filled from the end."""
    size = len(live)
    places: list[int | None] = [None] * size
    for place in live:
        if place < size:
            places[place] = place
    late = [place for place in live if place >= size]
    return [late.pop() if place is None else place for place in places]
