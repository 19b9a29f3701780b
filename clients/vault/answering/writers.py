"""Who writes a step of a solution: the private SLM, or it and the LLM together, token by token
(whole steps: whole_steps.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import Any, Literal

from fedduet.clients.vault.answering.steps import DELIMITER, Step, StepAsk, StepWriter
from fedduet.lm.decoding.decode import Answer, Ask, decode
from fedduet.lm.decoding.fusion import (
    FusedStepper,
    averaged,
    proxy_tuned,
    shared_context,
    shared_vocabulary,
    slm_pair,
)
from fedduet.lm.decoding.sample import end_tokens
from fedduet.lm.decoding.stepper import Stepper, stepper
from fedduet.lm.models.batch import longest


class TokenWriter:
    """A `StepWriter` over anything that steps token by token: one model, or several fused.

    `llm` and `slm`: how many LLMs and SLMs compute each token. `context`: tokens that fit. `final`:
    whether a line closes the solution even without an end token; asked for `whole` solutions only
    (a search asks it itself). A private SLM's prefix stays in the process.
    """

    def __init__(
        self,
        run: Stepper,
        tokenizer: Any,
        ends: AbstractSet[int],
        context: int,
        llm: int = 0,
        slm: int = 0,
        delimiter: str = DELIMITER,
        final: Callable[[str], bool] = lambda line: False,
        batch_size: int | None = 64,
    ) -> None:
        self._run, self._tokenizer, self._ends, self._context = run, tokenizer, ends, context
        self._llm, self._slm, self._delimiter, self._final, self._batch_size = (
            llm,
            slm,
            delimiter,
            final,
            batch_size,
        )
        self._encode = lru_cache(4096)(self._encoded)
        self._text = lru_cache(65536)(
            lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True)
        )

    def room(self, prefix: str) -> int:
        return self._context - len(self._encode(prefix))

    def write(self, asks: Sequence[StepAsk]) -> list[Step]:
        """One step for each ask. A failure of the stepper marks the rows it cut off as errors only
        if it is a `ConnectionError` or `TimeoutError` (a remote member); others are raised."""
        rows = [
            Ask(
                self._encode(ask.prefix),
                min(ask.max_tokens, self.room(ask.prefix)),
                ask.temperature,
                0,
                ask.top_p,
                ask.seed,
                self._closes if ask.whole else self._delimits,
            )
            for ask in asks
        ]
        answers: list[Answer | None] = [None] * len(rows)
        failure = ""
        try:
            decode(self._run, rows, self._ends, self._batch_size, done=answers.__setitem__)
        except (ConnectionError, TimeoutError) as error:
            failure = f"{type(error).__name__}: {error}"
        return [
            self._step(answer or Answer((), "error", failure), ask.whole)
            for answer, ask in zip(answers, asks, strict=True)
        ]

    def _encoded(self, prefix: str) -> tuple[int, ...]:
        ids = list(self._tokenizer(prefix, verbose=False)["input_ids"])
        while len(ids) > 1 and ids[-1] == self._tokenizer.eos_token_id:
            ids.pop()
        return tuple(ids)

    def _delimits(self, new: list[int]) -> bool:
        """Whether the last token ends a step: the delimiter's n characters lie within the last n
        tokens."""
        return self._delimiter in self._text(tuple(new[-len(self._delimiter) :]))

    def _closes(self, new: list[int]) -> bool:
        """Whether the last token ends a line that closes the solution."""
        return (
            self._delimits(new)
            and self._closed(self._tokenizer.decode(new, skip_special_tokens=True)) is not None
        )

    def _closed(self, text: str) -> str | None:
        """`text` up to its first whole line that closes the solution; None without one."""
        lines = text.split(self._delimiter)
        for number, line in enumerate(lines[:-1]):
            if line.strip() and self._final(line.strip()):
                return self._delimiter.join(lines[: number + 1])
        return None

    def _step(self, answer: Answer, whole: bool) -> Step:
        # the one that ended the row was drawn too
        count = len(answer.tokens) + (answer.finish in ("end", "error"))
        llm, slm = self._llm * count, self._slm * count
        if answer.finish == "error":
            return Step("", "error", llm, slm, error=answer.error)
        text = self._tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        if whole:
            closed = self._closed(text) if answer.finish == "stopped" else None
            over = answer.finish in ("end", "stopped")
            return Step((closed or text).strip(), "end" if over else "length", llm, slm)
        line, _, _ = text.partition(self._delimiter)
        end: Literal["end", "delimiter", "length"] = "length"
        if answer.finish in ("end", "stopped"):
            end = "end" if answer.finish == "end" else "delimiter"
        return Step(line.strip(), end, llm, slm)


# ---------------------------------------------------------------- writers of models in this process


def local_writers(
    tuned: tuple[Any, Any],
    base: tuple[Any, Any] | None = None,
    llm: tuple[Any, Any] | None = None,
    alpha: float = 1.0,
    final: Callable[[str], bool] = lambda line: False,
    batch_size: int | None = 64,
) -> dict[str, StepWriter]:
    """Writers of (model, tokenizer) pairs by mode, each model's weights prepared once.

    "private" (the tuned SLM); "base" (its untuned base: given, or a PeftModel's own, `base` None);
    with an LLM also "llm", "collaborative" (logit fusion with `alpha`) and "average" (mean logits
    of LLM and tuned SLM), which raise ValueError when vocabularies differ.
    """
    pair = slm_pair(tuned[0], base[0] if base else None)
    named: Mapping[str, tuple[Any, Any]] = {
        "private SLM": tuned,
        **({"base SLM": base} if base else {}),
        **({"LLM": llm} if llm else {}),
    }
    vocabulary = shared_vocabulary(named)
    context = min(
        [
            shared_context(model for model, _ in named.values()),
            *(longest(tokenizer) for _, tokenizer in named.values()),
        ]
    )
    ends = frozenset().union(*(end_tokens(model, tokenizer) for model, tokenizer in named.values()))

    def writer(run: Stepper, llms: int, slms: int) -> TokenWriter:
        return TokenWriter(
            run, tuned[1], ends, context, llms, slms, final=final, batch_size=batch_size
        )

    def alone(name: str, run: Stepper) -> FusedStepper:
        return FusedStepper({name: run}, {name: 1.0}, vocabulary)

    writers: dict[str, StepWriter] = {
        "private": writer(alone("tuned", pair.tuned), 0, 1),
        "base": writer(alone("base", pair.base), 0, 1),
    }
    if llm:
        large = stepper(llm[0])
        writers["llm"] = writer(alone("llm", large), 1, 0)
        writers["collaborative"] = writer(proxy_tuned(large, pair, alpha, vocabulary), 1, 2)
        writers["average"] = writer(averaged({"llm": large, "tuned": pair.tuned}, vocabulary), 1, 1)
    return writers
