"""Questions answered in steps: their layout, where the answer stands in a text, and when two
answers are the same."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction

OPENING, CLOSING = "Question: ", "Answer: "
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_MARKED = re.compile(r"(?:####|answer(?:\s+is)?\s*:?)\s*(?P<said>[^\n]*)", re.IGNORECASE)
_CHOICE = re.compile(r"^\(?([A-Ea-e])(?:[).:]+|\s*$)")


@dataclass(frozen=True)
class Question:
    """A question with its worked `steps`, one line each, the answer not among them; `domain` is a
    client's name."""

    question: str
    steps: tuple[str, ...]
    answer: str
    domain: str = ""


def worked(question: Question) -> tuple[str, str]:
    """A question as a model learns it: the prompt, and what it shall go on with: a step a line, and
    the answer."""
    return (
        prompt(question.question),
        "".join(f"{step}\n" for step in question.steps) + CLOSING + question.answer,
    )


def document(question: Question) -> str:
    """The same as one text."""
    return "".join(worked(question))


def prompt(question: str, steps: Sequence[str] = ()) -> str:
    """What the next step continues: ends where a line begins."""
    return "".join(f"{line}\n" for line in (OPENING + " ".join(question.split()), *steps))


def is_final(step: str) -> bool:
    """Whether a step states the answer."""
    return bool(_MARKED.match(step.strip()))


def find_answer(text: str) -> str | None:
    """What a solution answers: after the last "Answer:" or "####", its number or choice letter;
    without one, the last number of the text.

    None where there is neither.
    """
    marked = [match["said"].strip() for match in _MARKED.finditer(text)]
    said = next((one for one in reversed(marked) if one), None)
    if said is not None:
        if number := _NUMBER.search(said):
            return number[0]
        if letter := _CHOICE.match(said):
            return letter[1].upper()
        return said.rstrip(".") or None
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def answer_key(answer: str) -> Hashable:
    """Equal for equal answers: numbers by value ("1,000" and "1000.0", "1/2" and "50%"), other
    answers by their words in lower case."""
    plain = re.sub(r"[\s,$]", "", answer)
    percent = plain.endswith("%")
    try:
        return Fraction(plain.rstrip("%")) / (100 if percent else 1)
    except (ValueError, ZeroDivisionError):
        return " ".join(answer.casefold().split()).strip(" .()")


def is_right(found: str | None, wanted: str) -> bool:
    """Whether an answer was found and equals the wanted one."""
    return found is not None and answer_key(found) == answer_key(wanted)
