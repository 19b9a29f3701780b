"""One decode loop for every causal LM: rows with their own prompts, sampling, seeds and stop
conditions, in batches that stay full."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from fedduet.lm.decoding.draw import draw, uniforms
from fedduet.lm.decoding.guidance import guided
from fedduet.lm.decoding.stepper import Continuous, Stepper
from fedduet.lm.models.batch import pad

NOT_NUMBERS = "the model's logits are not numbers; try precision fp32"
# columns of a cache beside those that its rows need, so that it moves to its beginning only so
# often [O]
SLACK = 32
LANE = 8  # rows that are worth a thread of their own [O]


@dataclass(frozen=True)
class Ask:
    """One row to continue. `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 are off; `seed` fixes
    the row's own random stream.

    `stopped` is asked after every new token with all new tokens of the row so far; True ends the
    row there. `contrast`: a second prompt, from which `guidance` pushes the row away
    (`fedduet.lm.decoding.guidance`).
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stopped: Callable[[list[int]], bool] | None = None
    contrast: tuple[int, ...] = ()
    guidance: float = 0.0

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """The rows that it takes: the prompt, and the contrast where there is one."""
        return (self.prompt, self.contrast) if self.contrast else (self.prompt,)

    @property
    def length(self) -> int:
        """Tokens of the longest row at most."""
        return max(map(len, self.prompts)) + self.max_new_tokens


@dataclass(frozen=True)
class Answer:
    """New tokens, the end token not among them. `finish`: "end" (end token), "stopped" (by the
    row's own test), "length" or "error"."""

    tokens: tuple[int, ...]
    finish: str
    # what went wrong: logits that are not numbers, or too little memory for this row alone
    error: str = ""


def decode(
    run: Stepper,
    asks: Sequence[Ask],
    ends: AbstractSet[int],
    batch_size: int | None = 64,
    batch_tokens: int | None = None,
    done: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """One answer for each ask, in their order; `done(number, answer)` is called as each row ends,
    one call at a time.

    Rows run beside others that draw the same way and are of like length, at most `batch_size` rows
    and `batch_tokens` tokens at once, prompts and `max_new_tokens` together (None: no limit); where
    the stepper is `Continuous` a waiting row takes the place of one that has ended, and rows are
    dealt to as many threads as torch has. What is too large for the device's memory runs in halves.
    A row's answer depends on its own seed only, up to the rounding of products in batches of
    another shape (which in float32 all but never shows); which batches there are depends on the
    asks and the number of threads alone. Raises ValueError for an empty prompt.
    """
    if empty := [number for number, ask in enumerate(asks) if not ask.prompt]:
        raise ValueError(
            f"row {empty[0]}: found an empty prompt; a causal LM needs at least one token to"
            " continue from"
        )
    answers: list[Answer | None] = [None] * len(asks)
    one_at_a_time, stopped = threading.Lock(), threading.Event()

    def finish(number: int, answer: Answer) -> None:
        if stopped.is_set():
            raise _Stopped
        answers[number] = answer
        if done:
            with one_at_a_time:
                done(number, answer)

    @torch.inference_mode()
    def within_memory(run: Stepper, flights: Iterable[tuple[list[int], int]]) -> None:
        for numbers, size in flights:
            while numbers:
                try:
                    _decode_group(run, numbers, asks, ends, size, finish)
                except torch.OutOfMemoryError as failure:
                    message = str(failure).partition("\n")[0]
                numbers = [number for number in numbers if answers[number] is None]
                if numbers and size == 1:
                    finish(
                        numbers.pop(0),
                        Answer((), "error", f"out of memory for one request: {message}"),
                    )
                size = max(1, size // 2)

    for number, ask in enumerate(asks):
        if ask.max_new_tokens < 1:
            finish(number, Answer((), "length"))
    flights = _groups(asks, batch_size, batch_tokens)
    threads = torch.get_num_threads()
    lanes = (
        min(threads, len(asks) // LANE)
        if isinstance(run, Continuous) and run.device.type == "cpu"
        else 1
    )
    if lanes < 2:
        within_memory(run, flights)
        return answers  # type: ignore[return-value]

    def lane(number: int) -> None:
        mine = run if number == 0 else run.fork()
        try:
            within_memory(
                mine, [(numbers[number::lanes], max(1, size // lanes)) for numbers, size in flights]
            )
        except BaseException:
            stopped.set()
            raise

    torch.set_num_threads(1)  # of operations in the threads that begin now
    try:
        with ThreadPoolExecutor(lanes) as pool:
            futures = [
                pool.submit(contextvars.copy_context().run, lane, number) for number in range(lanes)
            ]
            try:
                failures = [failure for future in futures if (failure := future.exception())]
            except BaseException:
                stopped.set()
                raise
    finally:
        torch.set_num_threads(threads)
    for failure in failures:
        if not isinstance(failure, _Stopped):
            raise failure
    return answers  # type: ignore[return-value]


class _Stopped(Exception):
    """Another thread of this decoding has failed."""


def _groups(
    asks: Sequence[Ask], batch_size: int | None, batch_tokens: int | None
) -> list[tuple[list[int], int]]:
    """Numbers of rows that may run side by side, and how many of them at once: they draw alike;
    where tokens are limited and rows have to wait, none is twice as long as another, so that of
    shorter ones more run at once.

    Longest prompts come first, so that the place of a row that has ended is long enough for the
    next; equal prompts follow each other.
    """
    kinds: dict[tuple, list[int]] = {}
    for number, ask in enumerate(asks):
        if ask.max_new_tokens > 0:
            pushed = ask.guidance if ask.contrast else None
            kind = (ask.temperature == 0, ask.top_k, ask.top_p >= 1, pushed)
            kinds.setdefault(kind, []).append(number)
    flights = []
    for numbers in kinds.values():
        numbers.sort(key=lambda number: -asks[number].length)
        each = len(asks[numbers[0]].prompts)
        while numbers:
            longest = asks[numbers[0]].length
            size = min(
                batch_size or len(numbers),
                max(1, batch_tokens // (each * longest)) if batch_tokens else len(numbers),
                len(numbers),
            )
            alike = [number for number in numbers if 2 * asks[number].length > longest]
            rows = alike if batch_tokens and size < len(numbers) else numbers
            numbers = numbers[len(rows) :]
            order = sorted(
                rows,
                key=lambda number: (
                    -max(map(len, asks[number].prompts)),
                    -asks[number].max_new_tokens,
                    asks[number].prompts,
                ),
            )
            flights.append((order, min(size, len(order))))
    return flights


def _decode_group(
    run: Stepper,
    numbers: Sequence[int],
    asks: Sequence[Ask],
    ends: AbstractSet[int],
    size: int,
    finish: Callable[[int, Answer], None],
) -> None:
    """One token per step for at most `size` live rows, until all of `numbers` have ended. Prompts
    that begin together are computed once."""
    waiting, batch = (
        deque(numbers),
        _Batch(asks, max(asks[number].max_new_tokens for number in numbers)),
    )
    if asks[numbers[0]].contrast:
        run = guided(run, asks[numbers[0]].guidance)
    continuous = run if isinstance(run, Continuous) else None
    greedy, top_k = asks[numbers[0]].temperature == 0, asks[numbers[0]].top_k
    logits = torch.empty(0)
    while waiting or batch.slots:
        free = size - len(batch.slots)
        if waiting and (not batch.slots or (continuous and free >= max(1, size // 8))):
            begins = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            distinct = {
                prompts: place
                for place, prompts in enumerate(
                    dict.fromkeys(asks[number].prompts for number in begins)
                )
            }
            ids, mask = pad([row for prompts in distinct for row in prompts], 0, left=True)
            rows = torch.tensor([distinct[asks[number].prompts] for number in begins])
            if not batch.slots:
                logits = run.prefill(
                    ids, mask, batch.most + (SLACK if waiting and continuous else 0)
                )
                if len(distinct) < len(begins):
                    run.keep(rows.to(logits.device))
                    logits = logits[rows.to(logits.device)]
                batch.start(begins, logits.device)
            elif continuous and ids.shape[1] <= continuous.width:
                logits = torch.cat([logits, continuous.admit(ids, mask, rows)])
                batch.start(begins, logits.device)
            else:
                waiting.extendleft(reversed(begins))
        drawn = (
            logits.argmax(dim=-1)
            if greedy
            else draw(logits, batch.uniforms(), batch.temperature, top_k, batch.top_p)
        )
        broken = logits.sum(dim=-1).isnan().tolist()
        gone = False
        for place, token in enumerate(drawn.tolist()):
            if (number := batch.slots[place]) is None:
                continue
            new = batch.new[number]
            if token not in ends and not broken[place]:
                new.append(token)
            if how := "error" if broken[place] else _ending(asks[number], new, token in ends):
                finish(number, Answer(tuple(new), how, NOT_NUMBERS if broken[place] else ""))
                batch.slots[place], gone = None, True
        batch.age += 1
        live = [place for place, number in enumerate(batch.slots) if number is not None]
        if not live:
            batch.slots = []
            continue
        if gone and len(live) <= run.compact_at * len(batch.slots):
            places = _close_gaps(live)
            keep = torch.tensor(places, device=drawn.device)
            run.keep(keep)
            batch.keep(places, keep)
            drawn = drawn[keep]
        logits = run.step(drawn)


class _Batch:
    """The rows that run side by side: by place in the batch, whose row it is and how it draws.
    `most`: new tokens of any row at most."""

    def __init__(self, asks: Sequence[Ask], most: int) -> None:
        self.asks, self.most = asks, most
        self.slots: list[int | None] = []  # None: the row has ended
        self.new: dict[int, list[int]] = {}

    def start(self, numbers: Sequence[int], device: torch.device) -> None:
        """New rows behind those that are there, whose first token comes next."""
        asks, first = [self.asks[number] for number in numbers], not self.slots
        stream = torch.zeros(len(asks), self.most)
        for row, ask in zip(stream, asks, strict=True):
            row[: ask.max_new_tokens] = uniforms(ask.seed, ask.max_new_tokens)
        temperature = torch.tensor([ask.temperature for ask in asks])
        top_p, age = (
            torch.tensor([ask.top_p for ask in asks]),
            torch.zeros(len(asks), dtype=torch.int64),
        )
        joined = [part.to(device) for part in (stream, temperature, top_p, age)]
        if not first:
            joined = [
                torch.cat(pair)
                for pair in zip(
                    (self.stream, self.temperature, self.top_p, self.age), joined, strict=True
                )
            ]
        self.stream, self.temperature, self.top_p, self.age = joined
        self.slots += numbers
        self.new.update({number: [] for number in numbers})

    def uniforms(self) -> torch.Tensor:
        """[B] of each row's own stream, the number for its next token."""
        return self.stream.gather(1, self.age.clamp_max(self.most - 1)[:, None])[:, 0]

    def keep(self, places: Sequence[int], index: torch.Tensor) -> None:
        """These places go on, in this order."""
        self.slots = [self.slots[place] for place in places]
        self.stream, self.temperature, self.top_p, self.age = (
            part[index] for part in (self.stream, self.temperature, self.top_p, self.age)
        )


def _ending(ask: Ask, new: list[int], at_end: bool) -> str:
    """Why the row ends after its last token, or "" when it goes on."""
    if at_end:
        return "end"
    if ask.stopped and ask.stopped(new):
        return "stopped"
    return "length" if len(new) == ask.max_new_tokens else ""


def _close_gaps(live: list[int]) -> list[int]:
    """The live places, ordered so that as many as possible stay where they are: gaps are filled
    from the end."""
    size = len(live)
    places: list[int | None] = [None] * size
    for place in live:
        if place < size:
            places[place] = place
    late = [place for place in live if place >= size]
    return [late.pop() if place is None else place for place in places]
