"""A step of a solution: what is asked for, what is written, and what a writer is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

DELIMITER = "\n"


@dataclass(frozen=True)
class StepAsk:
    """One step to write after `prefix` (question and finished steps, worded, ending where the step
    begins), at most `max_tokens` long.

    `seed` fixes the step's own random stream. `whole`: all steps to the end of the solution, not
    one (`max_tokens` then bounds them all).
    """

    prefix: str
    seed: int
    max_tokens: int
    temperature: float = 0.7
    top_p: float = 1.0
    whole: bool = False


@dataclass(frozen=True)
class Step:
    """A written step, without its delimiter.

    `end`: "delimiter" (a finished step), "end" (the solution is over with it), "length" (the token
    cap), "error" (`error` says what, the text is empty). Tokens are those drawn from distributions
    the LLM, or an SLM, took part in, end and delimiter among them; prompts are not counted.
    `degraded`: the private model wrote it because the mode that was asked failed.
    """

    text: str
    end: Literal["delimiter", "end", "length", "error"]
    llm_tokens: int = 0
    slm_tokens: int = 0
    degraded: bool = False
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether the solution is over with this step."""
        return self.end == "end"


class StepWriter(Protocol):
    """Writes steps. Answers come in the order of the asks, one each, and depend on nothing but
    their own ask."""

    def write(self, asks: Sequence[StepAsk]) -> list[Step]: ...

    def room(self, prefix: str) -> int:
        """Tokens that may follow `prefix` in the context; below 1 none."""
        ...
