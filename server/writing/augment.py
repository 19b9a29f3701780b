"""Lets the LLM write new labelled texts after the clients' demonstrations (FDKT, step 4), or
without any (the ZeroGen baseline).

Every request's seed is derived from its name, so that a run repeats itself whatever was batched
with what, and the zero-shot baseline draws from the same random streams. What the LLM answers is
data: unreadable answers are counted, never an error.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pydantic
from fedduet.conf.check import ConfigError, Section
from fedduet.lm.randomness import derive
from fedduet.lm.text.near_copy import drop_near_copies
from fedduet.lm.text.rules import Rules, control_heads, filter_texts
from fedduet.lm.text.words import cut_to_tokens
from fedduet.server.llm.base import LLM, ChatTurn, Completion, Progress, Request
from fedduet.server.writing.curate import Demonstration
from fedduet.server.writing.likelihood import (
    can_judge_by_likelihood,
    label_likelihoods,
    layout,
    least_posterior,
)
from fedduet.server.writing.shots import ShotQueue
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.prompts import STOP, augment_prompt, parse_generated


class AugmentConfig(Section):
    """How many texts the LLM writes and which are taken. All values are our choice.

    Sampling is that of FDKT's generator (temperature 1.0, top-k 50, top-p 0.9). With a small LLM
    temperature 0.7 wrote much more alike (distinct bigrams 0.30 against 0.51) and sampling without
    top-k and top-p wrote broken words, without a measurable difference in how often an independent
    classifier agreed with the label.
    """

    per_label: int = pydantic.Field(default=100, ge=1)
    """Texts wanted of each label, for each domain."""
    shots: int = pydantic.Field(default=2, ge=0)
    """Demonstrations of each label in a prompt."""
    shot_tokens: int = pydantic.Field(default=96, ge=4)
    """A longer demonstration is cut."""
    per_request: int = pydantic.Field(default=5, ge=1)
    """Texts asked for at once, chat and list."""
    oversample: float = pydantic.Field(default=2.0, ge=1)
    """Texts asked for / texts wanted; the best are taken."""
    max_rounds: int = pydantic.Field(default=3, ge=1)
    """Times the LLM is asked while texts of a label are missing."""
    temperature: float = pydantic.Field(default=1.0, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: float = pydantic.Field(default=0.9, gt=0, le=1)
    """Of sampling: the least set of tokens with this much probability."""
    top_k: int = pydantic.Field(default=50, ge=0)
    """0: off."""
    max_new_tokens: int = pydantic.Field(default=96, ge=1)
    """For one text; a chat answer may have `per_request` times as many."""
    near_copy: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word 3-grams."""
    min_tokens: int = pydantic.Field(default=5, ge=1)
    """Shorter texts are dropped."""
    label_posterior: float | None = pydantic.Field(default=None, ge=0, le=1)
    """Least p(label | text) to keep; null: 0.8 / number of labels."""
    soft_labels: bool = False
    """Attach the LLM's posterior over the labels; where the LLM scores text."""


@dataclass(frozen=True)
class Generated:
    """One text the LLM wrote, the label (index) it was asked for, and its weight in training.
    `soft_label`: p(label | text)."""

    text: str
    label: int
    domain: str
    weight: float = 1.0
    soft_label: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Augmented:
    """`items`: label by label, the likeliest first where the LLM scored them. `counts`: requests,
    failed (engine errors), unreadable (answers without a readable text), texts (read from the
    answers), wrong_label, rule_<reason>, cut (back to a sentence end), near_copy, off_label,
    surplus, kept: texts is the sum of what follows it but `cut`. missing: texts wanted but not had;
    rounds; shots_left_out (for want of context); prompt_tokens; new_tokens."""

    items: tuple[Generated, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True)
class _Text:
    text: str
    label: int
    posterior: tuple[float, ...] | None = None

    @property
    def belief(self) -> float:
        return self.posterior[self.label] if self.posterior else 0.0


def augment(
    demonstrations: Sequence[Demonstration],
    task: Task,
    llm: LLM,
    domain: str,
    config: AugmentConfig,
    seed: int,
    demonstrate: bool = True,
    on_progress: Progress | None = None,
) -> Augmented:
    """New texts of `domain`, up to `per_label` of each label. `demonstrate=False`, or no
    demonstrations: zero-shot prompts with the same budget. Demonstrations are shown as they are,
    whichever domain they come from; the caller chooses them."""
    shown = list(demonstrations) if demonstrate else []
    queue = ShotQueue(shown, len(task.labels), derive(seed, "augment", domain))
    counts: Counter[str] = Counter()
    # demonstrations come again and again
    count = functools.lru_cache(maxsize=8192)(llm.count_tokens)
    have: list[_Text] = []
    for turn in range(config.max_rounds):
        had = Counter(one.label for one in have)
        missing = {
            label: config.per_label - had[label]
            for label in range(len(task.labels))
            if had[label] < config.per_label
        }
        if not missing:
            break
        asked: list[tuple[int, Request]] = []
        for label, number in missing.items():
            texts = math.ceil(number * config.oversample)
            for place in range(math.ceil(texts / _texts_per_request(llm, config))):
                request_seed = derive(seed, "augment", domain, label, turn, place)
                request = text_request(
                    queue,
                    task,
                    llm,
                    count,
                    domain,
                    label,
                    config,
                    request_seed,
                    _texts_per_request(llm, config),
                    counts,
                )
                asked.append((label, request))
        answers = llm.generate([request for _, request in asked], on_progress)
        counts["rounds"] += 1
        counts["requests"] += len(asked)
        counts["prompt_tokens"] += sum(answer.prompt_tokens for answer in answers)
        counts["new_tokens"] += sum(answer.new_tokens for answer in answers)
        if all(answer.finish == "error" for answer in answers):  # asking again would fail again
            counts["failed"] += len(answers)
            break
        texts, finished = _read(
            zip((label for label, _ in asked), answers, strict=True), task, llm, counts
        )
        have += _select(texts, finished, have, shown, task, llm, domain, config, counts)
    items = _best(have, domain, task, config, counts)
    counts["kept"] = len(items)
    counts["missing"] = config.per_label * len(task.labels) - len(items)
    return Augmented(tuple(items), dict(counts))


# -- Asking ----------------------------------------------------------------------------------------


def _texts_per_request(llm: LLM, config: AugmentConfig) -> int:
    return 1 if llm.form == "completion" else config.per_request


class Sampling(Protocol):
    """What a request needs of a configuration: AugmentConfig, or another with these fields."""

    shots: int
    shot_tokens: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int


def text_request(
    queue: ShotQueue,
    task: Task,
    llm: LLM,
    count: Callable[[str], int],
    domain: str,
    label: int,
    config: Sampling,
    seed: int,
    number: int,
    counts: Counter[str],
) -> Request:
    """A request for `number` texts of one label (one in completion form), after examples from the
    queue. Counts shots_left_out.

    Raises ConfigError when not even the prompt without examples fits the LLM's context.
    """
    new_tokens = min(config.max_new_tokens * number, llm.context // 2)
    shots = [
        Record(cut_to_tokens(shot.text, count, config.shot_tokens), shot.label, shot.domain)
        for shot in (queue.draw if llm.form == "list" else queue.draw_for)(label, config.shots)
    ]
    try:
        prompt, fit = augment_prompt(
            task, llm.form, domain, label, shots, number, count, llm.context - new_tokens
        )
    except ValueError as failure:  # even without demonstrations it is too long
        raise ConfigError(
            f"max_new_tokens: {llm.name} has a context of {llm.context} tokens, and {failure}"
        ) from None
    counts["shots_left_out"] += len(shots) - len(fit)
    if not isinstance(prompt, str):
        prompt = tuple(ChatTurn(role, content) for role, content in prompt)
    stop = () if llm.form == "chat" else stops(task)
    return Request(prompt, new_tokens, config.temperature, config.top_p, config.top_k, stop, seed)


def stops(task: Task) -> tuple[str, ...]:
    """Where a text of the completion form ends: a blank line, or a line that starts as the next
    document would."""
    return (STOP, *(f"\n{head}" for head in control_heads(layout(task).partition("{")[0])))


# -- Reading and choosing --------------------------------------------------------------------------


def _read(
    answered: Iterable[tuple[int, Completion]], task: Task, llm: LLM, counts: Counter[str]
) -> tuple[list[_Text], list[bool]]:
    """The texts of the answers with the label each claims, and whether it ended by itself. Counts
    what could not be read."""
    texts: list[_Text] = []
    finished: list[bool] = []
    for label, answer in answered:
        if answer.finish == "error":
            counts["failed"] += 1
            continue
        read = parse_generated(task, llm.form, answer.text, label)
        counts["unreadable"] += not read
        counts["texts"] += len(read)
        right = [place for place, (_, claimed) in enumerate(read) if claimed == label]
        counts["wrong_label"] += len(read) - len(right)
        texts += [_Text(read[place][0], label) for place in right]
        finished += [answer.finish == "stop" or place < len(read) - 1 for place in right]
    return texts, finished


def _select(
    texts: Sequence[_Text],
    finished: Sequence[bool],
    have: Sequence[_Text],
    shown: Sequence[Demonstration],
    task: Task,
    llm: LLM,
    domain: str,
    config: AugmentConfig,
    counts: Counter[str],
) -> list[_Text]:
    """The texts that pass the rules, copy neither what was shown nor one another, and carry their
    label as far as the LLM can tell."""
    heads = control_heads(layout(task))
    filtered = filter_texts(
        [one.text for one in texts], llm.count_tokens, Rules(config.min_tokens), finished, heads
    )
    for reason, number in filtered.dropped.items():
        counts[f"rule_{reason}"] += number
    counts["cut"] += filtered.cut
    passed = [_Text(text, texts[index].label) for index, text in filtered.kept]
    references = [one.text for one in shown] + [one.text for one in have]
    original = drop_near_copies([one.text for one in passed], references, config.near_copy)
    counts["near_copy"] += len(passed) - len(original)
    passed = [passed[index] for index in original]
    if not passed or llm.form == "chat" or not can_judge_by_likelihood(llm):
        return passed
    posteriors = label_likelihoods(
        llm, task, [one.text for one in passed], [domain] * len(passed)
    ).posteriors()
    judged = [
        _Text(one.text, one.label, tuple(row))
        for one, row in zip(passed, posteriors.tolist(), strict=True)
    ]
    least = least_posterior(config.label_posterior, len(task.labels))
    good = [one for one in judged if one.belief >= least]
    counts["off_label"] += len(judged) - len(good)
    return good


def _best(
    have: Sequence[_Text], domain: str, task: Task, config: AugmentConfig, counts: Counter[str]
) -> list[Generated]:
    items: list[Generated] = []
    for label in range(len(task.labels)):
        of_label = sorted((one for one in have if one.label == label), key=lambda one: -one.belief)
        counts["surplus"] += max(0, len(of_label) - config.per_label)
        for one in of_label[: config.per_label]:
            items.append(
                Generated(
                    one.text, label, domain, 1.0, one.posterior if config.soft_labels else None
                )
            )
    return items
