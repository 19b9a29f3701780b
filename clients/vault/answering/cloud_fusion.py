"""Steps written by the private SLM and a remote LLM together, token by token, without a request for
each token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from fedduet.clients.vault.answering.cloud_llm import Remote
from fedduet.clients.vault.answering.steps import StepAsk
from fedduet.clients.vault.answering.whole_steps import Completed
from fedduet.lm.decoding.decode import Ask
from fedduet.lm.decoding.drafts import LENGTH, DraftedAnswer, Following, Rest, decode_drafts
from fedduet.lm.decoding.stepper import Stepper


class RemoteFusion:
    """Steps written together with a remote LLM: softmax(z_LLM + alpha (z_tuned - z_base)), in
    drafts (`fedduet.lm.decoding.drafts.decode_drafts`).

    A `fedduet.clients.vault.answering.whole_steps.Complete`: hand it to
    `WholeStepWriter(fusion, context, fusion.count, seconds=...)`. The LLM's law is its
    `remote.config.top` likeliest tokens and, for the others, `rest`. `seconds`: for one call in
    all. `taken`: what the last call took, ask by ask.
    """

    def __init__(
        self,
        remote: Remote,
        tuned: Stepper,
        base: Stepper,
        tokenizer: Any,
        ends: AbstractSet[int],
        vocabulary: int | None = None,
        alpha: float = 1.0,
        length: int = LENGTH,
        seconds: float = 60.0,
        batch_size: int | None = 32,
        rest: Rest = "base",
    ) -> None:
        self.remote, self._tuned, self._base, self._tokenizer = remote, tuned, base, tokenizer
        self._ends, self._vocabulary, self._alpha, self._length, self._seconds = (
            ends,
            vocabulary,
            alpha,
            length,
            seconds,
        )
        self._batch_size, self._rest = batch_size, rest
        self._one_tokenizer = False  # as far as is known
        self.taken: list[DraftedAnswer] = []

    def count(self, text: str) -> int:
        """Tokens of a prefix."""
        return len(self._encode(text))

    def __call__(self, asks: Sequence[StepAsk], stop: str) -> list[Completed]:
        """Continues every ask's prefix up to `stop` (a `whole` one to its end). Raises
        RemoteFailed, and before anything is drafted where the LLM has another tokenizer."""
        if not self._one_tokenizer:
            self.remote.check_tokenizer(self._tokenizer)
            self._one_tokenizer = True
        deadline = time.monotonic() + self._seconds

        def score_drafts(rows: Sequence[tuple[int, ...]], heads: Sequence[int]) -> list[Following]:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self.remote.failed(
                    "Timeout", f"the steps were not written within {self._seconds:g} s"
                )
            found = self.remote.score_drafts(rows, heads, min(left, self.remote.config.seconds))
            if self._vocabulary and any(int(one.tokens.max()) >= self._vocabulary for one in found):
                raise self.remote.failed(
                    "Lie", f"found a token beyond the {self._vocabulary} that are shared"
                )
            return found

        def stopped(new: list[int]) -> bool:
            return stop in self._tokenizer.decode(new[-len(stop) :], skip_special_tokens=True)

        rows = [
            Ask(
                self._encode(ask.prefix),
                ask.max_tokens,
                ask.temperature,
                0,
                ask.top_p,
                ask.seed,
                None if ask.whole else stopped,
            )
            for ask in asks
        ]
        self.taken = decode_drafts(
            self._tuned,
            self._base,
            score_drafts,
            rows,
            self._ends,
            self._alpha,
            self._length,
            self._batch_size,
            self._vocabulary,
            self._rest,
        )
        if broken := [one.answer.error for one in self.taken if one.answer.finish == "error"]:
            raise self.remote.failed("NotNumbers", broken[0])
        done = [self._completed(one) for one in self.taken]
        self.remote.counts.llm_tokens += sum(one.tokens for one in done)
        return done

    def _encode(self, prefix: str) -> tuple[int, ...]:
        ids = list(self._tokenizer(prefix, verbose=False)["input_ids"])
        while len(ids) > 1 and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        return tuple(ids)

    def _completed(self, drafted: DraftedAnswer) -> Completed:
        ended = drafted.answer.finish == "end"
        text = self._tokenizer.decode(list(drafted.answer.tokens), skip_special_tokens=True)
        return Completed(text, len(drafted.answer.tokens) + ended, ended)
