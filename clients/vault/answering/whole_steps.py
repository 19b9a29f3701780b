"""The LLM writes whole steps, through anything that completes text; and the private model stands in
for a remote LLM that fails."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from fedduet.clients.vault.answering.steps import DELIMITER, Step, StepAsk, StepWriter

T = TypeVar("T")


@dataclass(frozen=True)
class Completed:
    """What a text-completing service answered: the text, its number of tokens, and whether the
    model ended the text itself."""

    text: str
    tokens: int
    ended: bool = False


Complete = Callable[[Sequence[StepAsk], str], Sequence[Completed]]
"""Continues every ask's prefix by at most `max_tokens` tokens, up to the given stop string;
in order, one each. May raise anything."""


class WholeStepWriter:
    """The LLM writes the step itself: for models whose tokenizer is not the SLM's. `complete` may
    be remote.

    `context`: tokens that fit; `count`: tokens of a text, as the LLM counts them (by default one
    for every 3 characters, more than there are in English [O]). `seconds`: the longest it may take.
    An answer that is not what was asked (more tokens, no text) is an error step.
    """

    def __init__(
        self,
        complete: Complete,
        context: int = 1_000_000,
        count: Callable[[str], int] = lambda text: math.ceil(len(text) / 3),
        delimiter: str = DELIMITER,
        seconds: float = 60.0,
    ) -> None:
        self._complete, self._context, self._count, self._delimiter, self._seconds = (
            complete,
            context,
            count,
            delimiter,
            seconds,
        )

    def room(self, prefix: str) -> int:
        return self._context - self._count(prefix)

    def write(self, asks: Sequence[StepAsk]) -> list[Step]:
        """Raises what `complete` raises, TimeoutError, and ConnectionError for a wrong number of
        answers."""
        answers = _within(self._seconds, lambda: list(self._complete(asks, self._delimiter)))
        if len(answers) != len(asks):
            raise ConnectionError(
                f"the LLM sent {len(answers)} completions for {len(asks)} prompts"
            )
        return [self._step(ask, answer) for ask, answer in zip(asks, answers, strict=True)]

    def _step(self, ask: StepAsk, answer: Completed) -> Step:
        if (
            not isinstance(answer, Completed)
            or not isinstance(answer.text, str)
            or not isinstance(answer.tokens, int)
        ):
            return Step(
                "", "error", error=f"Lie: the LLM sent {str(answer)[:80]!r}, which is no completion"
            )
        if not 0 <= answer.tokens <= ask.max_tokens:
            why = (
                f"Lie: the LLM says that it wrote {answer.tokens} tokens; at most {ask.max_tokens}"
                " were asked"
            )
            return Step("", "error", ask.max_tokens, error=why)
        if ask.whole:
            return Step(answer.text.strip(), "end" if answer.ended else "length", answer.tokens)
        line, found, _ = answer.text.partition(self._delimiter)
        end = (
            "delimiter"
            if found
            else (
                "end"
                if answer.ended
                else "length"
                if answer.tokens == ask.max_tokens
                else "delimiter"
            )
        )
        return Step(line.strip(), end, answer.tokens)  # type: ignore[arg-type]


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; TimeoutError when that takes longer. A call that hangs does
    not keep the process from ending."""
    answered: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answered.put((call(), None))
        except BaseException as failure:
            answered.put((None, failure))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, failure = answered.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if failure is not None:
        raise failure
    return result


# ---------------------------------------------------------------- when the LLM fails


class FallbackWriter:
    """A writer that depends on a remote LLM, backed by the private one: whatever it fails to write,
    `private` writes instead.

    A failure is an exception of any kind, an error step (logits that are not numbers, a lie), or an
    empty step. After `patience` calls in a row that failed whole, the remote one is left alone for
    `rest` seconds. `failures` counts steps by reason. Time limits are the remote writer's own
    (`WholeStepWriter.seconds`, the timeouts of a remote stepper).
    """

    def __init__(
        self,
        remote: StepWriter,
        private: StepWriter,
        patience: int = 3,
        rest: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remote, self._private, self._patience, self._rest, self._clock = (
            remote,
            private,
            patience,
            rest,
            clock,
        )
        self._failed, self._asleep_until = 0, -math.inf
        self.failures: dict[str, int] = {}

    def room(self, prefix: str) -> int:
        return min(self._remote.room(prefix), self._private.room(prefix))

    def write(self, asks: Sequence[StepAsk]) -> list[Step]:
        """One step for each ask, whatever the remote writer does."""
        if not asks:
            return []
        steps = self._attempt(asks)
        bad = [
            number
            for number, step in enumerate(steps)
            if step.end == "error" or not (step.text or step.ended)
        ]
        for number, own in zip(
            bad, self._private.write([asks[number] for number in bad]) if bad else [], strict=True
        ):
            lost = steps[number]
            why = lost.error or "EmptyStep: the LLM wrote nothing"
            reason = why.partition(":")[0]
            self.failures[reason] = self.failures.get(reason, 0) + 1
            steps[number] = replace(
                own,
                llm_tokens=own.llm_tokens + lost.llm_tokens,
                slm_tokens=own.slm_tokens + lost.slm_tokens,
                degraded=True,
                error=own.error or why,
            )
        return steps

    def _attempt(self, asks: Sequence[StepAsk]) -> list[Step]:
        if self._clock() < self._asleep_until:
            return [Step("", "error", error="NotAsked: failed too often in a row")] * len(asks)
        try:
            steps = self._remote.write(asks)
            if len(steps) != len(asks):
                raise ConnectionError(f"found {len(steps)} steps for {len(asks)} asked")
        except Exception as failure:  # a remote service may fail in any way; the question must not
            steps = [Step("", "error", error=f"{type(failure).__name__}: {failure}")] * len(asks)
        self._failed = self._failed + 1 if all(step.end == "error" for step in steps) else 0
        if self._failed >= self._patience:
            self._failed, self._asleep_until = 0, self._clock() + self._rest
        return list(steps)
