"""The one interface to the cloud LLM; strategies cannot tell which engine is behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fedduet.lm.training.config import ExamplesConfig, PolicyConfig, TuneReport


@dataclass(frozen=True)
class ChatTurn:
    """One turn of a chat prompt; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | tuple[ChatTurn, ...]


@dataclass(frozen=True)
class Request:
    """One generation. `prompt` is a string (completion form) or turns (chat form, for engines whose
    `form` is "chat").

    `seed` fixes this request's own random stream, so that its answer does not depend on what it is
    batched with. `temperature` 0 is greedy. `top_k` 0 and `top_p` 1.0 are off. Generation ends at
    EOS, at `max_new_tokens`, or before the first of `stop`, which is not part of the text.
    `contrast`: a second prompt (another label's, say) from which `guidance` >= 0 pushes the text
    away: logits z + guidance * (z - z_contrast), see `fedduet.lm.decoding.guidance`; engines that
    cannot answer such a request with an error (`NO_CONTRAST`).
    """

    prompt: str | tuple[ChatTurn, ...]
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    contrast: str | tuple[ChatTurn, ...] | None = None
    guidance: float = 0.0


NO_CONTRAST = (
    "contrast: a second prompt was given, but this engine cannot run two prompts for one text; use"
    " llm.engine=transformers or leave contrast out"
)


@dataclass(frozen=True)
class Completion:
    """The answer to one request. `finish` is "stop", "length" or "error" (then `text` is empty and
    `error` says why)."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finish: str
    error: str = ""


Progress = Callable[[int, int, int], None]  # requests done, requests in all, new tokens so far


@runtime_checkable
class LLM(Protocol):
    """A text generator. Answers come in the order of the requests, one each, and a failed request
    never fails the others."""

    name: str  # shown in reports, e.g. "transformers:reviews-12m"
    form: str  # "chat" or "completion": which prompts it should be given
    parameters: int | None  # number of weights, None when unknown (an API)
    context: int  # longest prompt + answer, tokens

    def generate(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> list[Completion]: ...

    def count_tokens(self, text: str) -> int:
        """Length of `text` in this engine's tokens (an upper estimate for an API whose tokenizer is
        unknown)."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class ScoresText(Protocol):
    """Optional: engines that can say how likely a continuation is. Ask with
    `isinstance(llm, ScoresText)`."""

    def continuation_logprobs(
        self, pairs: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float]:
        """For each (prompt, continuation): sum over the continuation's tokens of log p(token | what
        precedes), natural log."""
        ...


@dataclass(frozen=True)
class Rated:
    """A text the LLM wrote after `prompt`, and its reward. Texts of one `group` (a label, say) are
    compared with each other only.

    `ended`: the text came to its end by itself, so the end token is part of what was chosen.
    """

    prompt: Prompt
    text: str
    reward: float
    group: str
    ended: bool = True


@dataclass(frozen=True)
class Example:
    """An answer the LLM shall give after `prompt`; `weight` 0 or more."""

    prompt: Prompt
    answer: str
    weight: float = 1.0


@runtime_checkable
class Tunes(Protocol):
    """Optional: engines whose LLM learns by LoRA adapters. The base never changes. Ask with
    `isinstance(llm, Tunes)`.

    Adapters have names; one that is not there yet is made, unchanged from the base, by the first
    `tune_*` that names it.
    """

    adapter: str | None  # in use

    def use(self, adapter: str | None) -> None:
        """Generate and score with this adapter from now on; None: with the base alone."""
        ...

    def tune_policy(
        self,
        adapter: str,
        rated: Sequence[Rated],
        config: PolicyConfig,
        seed: int,
        keep: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> TuneReport:
        """Make well-rated texts likelier (see `PolicyConfig.objective`); stops and restores the
        adapter when the KL passes its limit.

        `keep`: texts on which the LLM shall go on predicting as its base does (KL to the base, full
        vocabulary).
        """
        ...

    def tune_examples(
        self,
        adapter: str,
        examples: Sequence[Example],
        config: ExamplesConfig,
        seed: int,
        keep: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> TuneReport:
        """Learn answers; `keep` as in `tune_policy`."""
        ...

    def save_adapter(self, adapter: str, folder: Path) -> None:
        """Write the adapter as a folder that plain peft loads."""
        ...

    def load_adapter(self, adapter: str, folder: Path) -> None:
        """Put the weights of `folder` into `adapter`, made when it is not there."""
        ...

    def drop_adapter(self, adapter: str) -> None:
        """Forget `adapter`, if it is there: the next tuning of that name begins from the base."""
        ...
