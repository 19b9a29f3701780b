"""The LLM's general ability, which tuning must not cost: perplexity of neutral text, and tasks that
were not tuned."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic
from fedduet.conf.check import ConfigError, Section
from fedduet.lm.randomness import numpy_generator
from fedduet.lm.text.words import cut_to_tokens
from fedduet.server.llm.base import LLM, ScoresText
from fedduet.tasks.builtin.world import public_documents

BUILTIN = "builtin:world"
CHOICES = 4  # of a continuation question [O]


class GeneralConfig(Section):
    """Neutral text and how far the LLM may fall on it. All values are our choice [O]."""

    texts: str | None = None
    """.txt (paragraphs), .jsonl, either also .gz; builtin:world; null: not measured."""
    text_column: str = "text"
    """Of .jsonl."""
    tasks: tuple[str, ...] = ()
    """.jsonl files of {"prompt", "choices", "answer" (index)}."""
    documents: int = pydantic.Field(64, ge=4)
    """Measured; as many again are replayed while the task is tuned."""
    tokens: int = pydantic.Field(96, ge=16)
    """Of a document."""
    worst_perplexity: float = pydantic.Field(0.02, ge=0)
    """Allowed relative rise."""
    worst_accuracy: float = pydantic.Field(0.05, ge=0)
    """Allowed fall."""


@dataclass(frozen=True)
class Question:
    """A multiple-choice question, answered by the likeliest continuation of `prompt`."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class General:
    """`measured` and `replay` have no text in common. `questions`: of files, and continuations of
    measured texts."""

    measured: tuple[str, ...]
    replay: tuple[str, ...]
    questions: tuple[Question, ...]
    tokens: int


@dataclass(frozen=True)
class GeneralMeasure:
    """`perplexity` per token of neutral text, `accuracy` on `questions` multiple-choice
    questions."""

    perplexity: float
    accuracy: float
    tokens: int
    questions: int


def load_general(config: GeneralConfig, seed: int) -> General | None:
    """The texts and questions that `config` names; None without texts. Raises ConfigError for what
    cannot be read or is too little."""
    if config.texts is None:
        return None
    texts = _texts(config)
    needed = 2 * config.documents
    if len(texts) < needed:
        raise ConfigError(
            f"general.texts: {config.texts} holds {len(texts)} usable texts; {needed} are needed (2"
            " x general.documents)"
        )
    order = numpy_generator(seed, "general").permutation(len(texts))[:needed]
    chosen = [texts[place] for place in order]
    measured, replay = chosen[: config.documents], chosen[config.documents :]
    questions = [
        *_continuations(measured, seed),
        *(question for file in config.tasks for question in _questions(Path(file))),
    ]
    return General(tuple(measured), tuple(replay), tuple(questions), config.tokens)


def measure_general(llm: LLM, general: General) -> GeneralMeasure:
    """Perplexity exp(-sum of log p / tokens) of the measured texts, each from its second word on,
    and accuracy on the questions.

    A question is answered by the choice with the highest mean log-probability per token, since
    choices differ in length. Raises ConfigError for an engine that cannot score text.
    """
    if not isinstance(llm, ScoresText):
        raise ConfigError(
            f"general.texts: {llm.name} cannot score text; set strategy.general.texts=null"
        )
    limit = min(general.tokens, llm.context - 4)
    pairs = []
    for text in general.measured:
        first, _, rest = cut_to_tokens(text, llm.count_tokens, limit).partition(" ")
        pairs.append((first, " " + rest))
    counts = [llm.count_tokens(rest) for _, rest in pairs]
    asked = [
        (cut_to_tokens(q.prompt, llm.count_tokens, limit), choice)
        for q in general.questions
        for choice in _cut(q, llm, limit)
    ]
    scores = llm.continuation_logprobs(pairs + asked)
    perplexity = math.exp(-sum(scores[: len(pairs)]) / sum(counts))
    right, at = 0, len(pairs)
    for question in general.questions:
        found = [
            scores[at + i] / max(1, llm.count_tokens(asked[at - len(pairs) + i][1]))
            for i in range(len(question.choices))
        ]
        right += max(range(len(found)), key=found.__getitem__) == question.answer
        at += len(question.choices)
    return GeneralMeasure(
        perplexity, right / len(general.questions), sum(counts), len(general.questions)
    )


def fell(before: GeneralMeasure, after: GeneralMeasure, config: GeneralConfig) -> str:
    """What fell by more than allowed, in a sentence; "" when nothing did."""
    rise = after.perplexity / before.perplexity - 1
    if rise > config.worst_perplexity or math.isnan(rise):
        return (
            f"perplexity of neutral text rose by {rise:.1%}, from {before.perplexity:.2f}; allowed:"
            f" {config.worst_perplexity:.1%}"
        )
    if before.accuracy - after.accuracy > config.worst_accuracy + 1e-9:
        return (
            f"accuracy on other tasks fell from {before.accuracy:.3f} to {after.accuracy:.3f};"
            f" allowed: by {config.worst_accuracy:g}"
        )
    return ""


def _cut(question: Question, llm: LLM, limit: int) -> list[str]:
    room = max(8, llm.context - min(limit, llm.count_tokens(question.prompt)) - 4)
    return [cut_to_tokens(choice, llm.count_tokens, room) for choice in question.choices]


def _continuations(texts: Sequence[str], seed: int) -> list[Question]:
    """For each text: its first half, and its true second half among CHOICES - 1 of other texts (the
    form of HellaSwag)."""
    halves = []
    for text in texts:
        words = text.split(" ")
        halves.append(
            (" ".join(words[: len(words) // 2]), " " + " ".join(words[len(words) // 2 :]))
        )
    draws, questions = numpy_generator(seed, "continuations"), []
    for number, (start, end) in enumerate(halves):
        others = [other for other in draws.permutation(len(halves)) if other != number][
            : CHOICES - 1
        ]
        # all choices of like length, or the shortest would be the likeliest
        length = len(end.split(" "))
        wrong = [" ".join(halves[other][1].split(" ")[:length]) for other in others]
        answer = int(draws.integers(CHOICES))
        questions.append(Question(start, (*wrong[:answer], end, *wrong[answer:]), answer))
    return questions


def _texts(config: GeneralConfig) -> list[str]:
    """Texts of at least 16 words, white space as single spaces, each once."""
    if config.texts == BUILTIN:
        # the stand-in was made from seed 0
        found: Sequence[str] = public_documents(101, 3 * config.documents)
    else:
        found = _read(Path(str(config.texts)).expanduser(), config.text_column)
    limit = 8 * config.tokens  # words; the LLM's tokens decide later
    lines = [" ".join(text.split()[:limit]) for text in found]
    return list(dict.fromkeys(line for line in lines if line.count(" ") >= 15))


def _read(file: Path, column: str) -> list[str]:
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
            content = lines.read()
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"general.texts: {file} cannot be read: {failure}") from None
    if ".jsonl" not in file.suffixes:
        return content.split("\n\n") if "\n\n" in content else content.splitlines()
    rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    if missing := next(
        (
            number
            for number, row in enumerate(rows, start=1)
            if not isinstance(row.get(column), str)
        ),
        None,
    ):
        raise ConfigError(
            f"general.texts: {file}, line {missing}: has no text in {column!r}; set"
            " general.text_column"
        )
    return [row[column] for row in rows]


def _questions(file: Path) -> list[Question]:
    found = []
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigError(f"general.tasks: {file} cannot be read: {failure}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            question = Question(
                str(row["prompt"]), tuple(map(str, row["choices"])), int(row["answer"])
            )
        except (ValueError, KeyError, TypeError) as failure:
            raise ConfigError(
                f"general.tasks: {file}, line {number}: needs prompt, choices and answer"
                f" ({failure})"
            ) from None
        if not 0 <= question.answer < len(question.choices):
            raise ConfigError(
                f"general.tasks: {file}, line {number}: answer {question.answer} is none of"
                f" {len(question.choices)} choices"
            )
        found.append(question)
    return found
