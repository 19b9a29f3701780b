"""One decode loop for every causal LM: rows with their own prompts, sampling, seeds and stop conditions, in one shrinking batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel

from lm.batch import by_length, pad, positions
from lm.draw import draw, uniforms
from lm.key_value_cache import roomy_cache
from lm.llama import LlamaStepper, affords_copies, is_plain_llama
from lm.load import merged

NOT_NUMBERS = "the model's logits are not numbers; try precision fp32"


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
    """New tokens, the end token not among them. `finish`: "end" (end token), "stopped" (by the row's own test), "length" or "error"."""

    tokens: tuple[int, ...]
    finish: str
    error: str = ""  # what went wrong: logits that are not numbers, or too little memory for this row alone


class Stepper(Protocol):
    """A causal LM with a cache: what the loop needs of it. Prompts are padded on the left."""

    compact_at: float  # the loop calls `keep` when the share of live rows has fallen to this

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        """Starts a batch: ids and mask int64 [B, T] on any device, `room` steps to come. Next-token logits [B, V], float32."""
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feeds one token for each row, int64 [B]. Next-token logits [B, V], float32."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """`rows` (int64 [b]) go on, in this order; a row may come several times, to go on in several ways."""
        ...


class AnyStepper:
    """Any Hugging Face causal LM through its own forward, adapters as they are."""

    compact_at = 0.75  # selecting rows copies the whole cache

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        self.model = model if dtype in (None, model.dtype) else copy.deepcopy(model).to(dtype)

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor, room: int) -> torch.Tensor:
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        self._cache = None  # the batch before makes room
        self._cache, self._length = roomy_cache(self.model.config, ids.shape[1] + room), ids.shape[1]
        self._mask, self._positions = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1), positions(mask)
        return self._run(ids)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._length, self._positions = self._length + 1, self._positions[:, -1:] + 1
        return self._run(tokens[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        mask = self._mask[:, : self._length]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": self._positions, "logits_to_keep": 1}
        return forward(self.model, **inputs, past_key_values=self._cache, use_cache=True).logits[:, -1].float()


def forward(model: Any, **inputs: Any) -> Any:
    """The model's output; arguments that its architecture does not know (position_ids, logits_to_keep) are left out."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    known = inspect.signature(inner.forward).parameters
    return model(**{name: value for name, value in inputs.items() if name in known})


def stepper(model: Any, dtype: torch.dtype | None = None) -> Stepper:
    """The fastest stepper for `model`, with LoRA folded in; weights are copied in `dtype`. Make it anew when the weights change."""
    plain = merged(model)
    return LlamaStepper(plain, dtype) if is_plain_llama(plain) and affords_copies(plain) else AnyStepper(plain, dtype)


@torch.inference_mode()
def decode(
    run: Stepper,
    asks: Sequence[Ask],
    ends: AbstractSet[int],
    batch_size: int | None = 64,
    batch_tokens: int | None = None,
    done: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """One answer for each ask, in their order; `done(number, answer)` is called as each row ends.

    Rows are batched longest first with others that draw the same way, at most `batch_size` rows and `batch_tokens` tokens, prompts and
    `max_new_tokens` together (None: no limit). A batch that is too large for the device's memory runs in halves, without the rows that
    are done. A row's answer depends on its own seed only, up to the rounding of products in batches of another shape (which in float32
    all but never shows). Raises ValueError for an empty prompt.
    """
    if empty := [number for number, ask in enumerate(asks) if not ask.prompt]:
        raise ValueError(f"row {empty[0]}: found an empty prompt; a causal LM needs at least one token to continue from")
    answers: list[Answer | None] = [None] * len(asks)

    def finish(number: int, answer: Answer) -> None:
        answers[number] = answer
        if done:
            done(number, answer)

    def within_memory(numbers: list[int]) -> None:
        try:
            return _decode_batch(run, numbers, asks, ends, finish)
        except torch.OutOfMemoryError as failure:
            message = str(failure).partition("\n")[0]
        if len(numbers) == 1:
            return finish(numbers[0], Answer((), "error", f"out of memory for one request: {message}"))
        left = [number for number in numbers if answers[number] is None]
        for half in (left[: len(left) // 2], left[len(left) // 2 :]):
            if half:
                within_memory(half)

    kinds: dict[tuple, list[int]] = {}
    for number, ask in enumerate(asks):
        if ask.max_new_tokens < 1:
            finish(number, Answer((), "length"))
        else:
            kinds.setdefault((ask.temperature == 0, ask.top_k, ask.top_p >= 1), []).append(number)
    for numbers in kinds.values():
        numbers.sort(key=lambda number: asks[number].prompt)  # equal prompts meet in one batch
        lengths = [len(asks[number].prompt) + asks[number].max_new_tokens for number in numbers]
        for batch in by_length(lengths, batch_size, batch_tokens):
            within_memory([numbers[i] for i in batch])
    return answers  # type: ignore[return-value]


def _decode_batch(
    run: Stepper, numbers: list[int], asks: Sequence[Ask], ends: AbstractSet[int], finish: Callable[[int, Answer], None]
) -> None:
    """Prefill, once for each distinct prompt, then one token per step for every live row."""
    rows = [asks[number] for number in numbers]
    steps = max(row.max_new_tokens for row in rows)
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    logits = run.prefill(*pad(list(prompts), 0, left=True), steps)
    device = logits.device
    if len(prompts) < len(rows):
        shared = torch.tensor([prompts[row.prompt] for row in rows], device=device)
        run.keep(shared)
        logits = logits[shared]
    stream = torch.zeros(len(rows), steps)
    for i, row in enumerate(rows):
        stream[i, : row.max_new_tokens] = uniforms(row.seed, row.max_new_tokens)
    stream = stream.to(device)
    temperature = torch.tensor([row.temperature for row in rows], device=device)
    top_p = torch.tensor([row.top_p for row in rows], device=device)
    top_k, greedy = rows[0].top_k, rows[0].temperature == 0
    slots: list[int | None] = list(range(len(rows)))  # the row in each place of the batch; None: it has ended
    new: list[list[int]] = [[] for _ in rows]
    for step in range(steps):
        drawn = logits.argmax(dim=-1) if greedy else draw(logits, stream[:, step], temperature, top_k, top_p)
        for place, (token, broken) in enumerate(zip(drawn.tolist(), logits.sum(dim=-1).isnan().tolist(), strict=True)):
            i = slots[place]
            if i is None:
                continue
            if token not in ends and not broken:
                new[i].append(token)
            if how := "error" if broken else _ending(rows[i], new[i], token in ends):
                finish(numbers[i], Answer(tuple(new[i]), how, NOT_NUMBERS if broken else ""))
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
