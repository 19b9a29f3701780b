"""Class-conditional writing for CrossLM: one text for each request, with the prompt it was written
after, so that it can be rewarded."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pydantic
from fedduet.conf.check import Section
from fedduet.lm.randomness import derive
from fedduet.lm.text.near_copy import drop_near_copies
from fedduet.lm.text.rules import Rules, control_heads, filter_texts
from fedduet.server.llm.base import LLM, Progress, Prompt
from fedduet.server.writing.augment import text_request
from fedduet.server.writing.curate import Demonstration
from fedduet.server.writing.likelihood import layout
from fedduet.server.writing.shots import ShotQueue
from fedduet.tasks.task import Task
from fedduet.tasks.wording.prompts import parse_generated


class WriteConfig(Section):
    """How the LLM writes; the number of texts is the strategy's. All values are our choice [O]: see
    AugmentConfig."""

    shots: int = pydantic.Field(default=2, ge=0)
    """Examples of each label in a prompt, where there are any."""
    shot_tokens: int = pydantic.Field(default=96, ge=4)
    """A longer example is cut."""
    oversample: float = pydantic.Field(default=1.3, ge=1)
    """Texts asked for / texts wanted; the rules drop some."""
    temperature: float = pydantic.Field(default=1.0, ge=0)
    """Of sampling; 0 is greedy."""
    top_p: float = pydantic.Field(default=0.9, gt=0, le=1)
    """Of sampling: the least set of tokens with this much probability."""
    top_k: int = pydantic.Field(default=50, ge=0)
    """Of sampling: among so many likeliest tokens; 0 is off."""
    max_new_tokens: int = pydantic.Field(default=96, ge=1)
    """The most tokens of one text."""
    near_copy: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Word 3-gram Jaccard similarity from which a text counts as a copy."""
    min_tokens: int = pydantic.Field(default=5, ge=1)
    """Shorter texts are dropped."""


@dataclass(frozen=True)
class Written:
    """One text with the label it was asked for; `completion` is what the LLM said after `prompt`,
    `ended`: by itself."""

    text: str
    label: int
    prompt: Prompt
    completion: str
    ended: bool


@dataclass(frozen=True)
class Writing:
    """`texts` label by label, in the order they were asked for; nothing chose among them but the
    rules. `counts` as in Augmented."""

    texts: tuple[Written, ...]
    counts: Mapping[str, int]


def write(
    task: Task,
    llm: LLM,
    domain: str,
    per_label: int,
    demonstrations: Sequence[Demonstration],
    config: WriteConfig,
    seed: int,
    on_progress: Progress | None = None,
) -> Writing:
    """Up to `per_label` texts of each label for `domain`, after `demonstrations` where there are
    any.

    Unlike FDKT's augmentation it does not ask the LLM itself whether a text carries its label: that
    is what the sites' scores are for.
    """
    labels = range(len(task.labels))
    queue = ShotQueue(list(demonstrations), len(labels), derive(seed, "write", domain))
    counts: Counter[str] = Counter()
    count = functools.lru_cache(maxsize=8192)(llm.count_tokens)
    number = math.ceil(per_label * config.oversample)
    asked = [
        (
            label,
            text_request(
                queue,
                task,
                llm,
                count,
                domain,
                label,
                config,
                derive(seed, "write", domain, label, place),
                1,
                counts,
            ),
        )
        for label in labels
        for place in range(number)
    ]
    answers = llm.generate([request for _, request in asked], on_progress)
    counts["requests"] += len(asked)
    counts["prompt_tokens"] += sum(answer.prompt_tokens for answer in answers)
    counts["new_tokens"] += sum(answer.new_tokens for answer in answers)
    read: list[Written] = []
    for (label, request), answer in zip(asked, answers, strict=True):
        if answer.finish == "error":
            counts["failed"] += 1
            continue
        found = [
            text
            for text, claimed in parse_generated(task, llm.form, answer.text, label)
            if claimed == label
        ]
        counts["unreadable"] += not found
        if found:
            read.append(
                Written(found[0], label, request.prompt, answer.text, answer.finish == "stop")
            )
    texts = _usable(read, task, llm, config, counts)
    chosen = [
        one for label in labels for one in [one for one in texts if one.label == label][:per_label]
    ]
    counts["surplus"] += len(texts) - len(chosen)
    counts["kept"] = len(chosen)
    counts["missing"] = per_label * len(labels) - len(chosen)
    return Writing(tuple(chosen), dict(counts))


def _usable(
    read: Sequence[Written], task: Task, llm: LLM, config: WriteConfig, counts: Counter[str]
) -> list[Written]:
    """Without junk and near copies of one another. A text that the rules cut back to a sentence's
    end is rewarded as cut."""
    finished = [one.ended for one in read]
    filtered = filter_texts(
        [one.text for one in read],
        llm.count_tokens,
        Rules(config.min_tokens),
        finished,
        control_heads(layout(task)),
    )
    for reason, number in filtered.dropped.items():
        counts[f"rule_{reason}"] += number
    counts["cut"] += filtered.cut
    passed = [(text, read[index]) for index, text in filtered.kept]
    original = drop_near_copies([text for text, _ in passed], [], config.near_copy)
    counts["near_copy"] += len(passed) - len(original)
    return [
        Written(text, one.label, one.prompt, one.completion, one.ended)
        for text, one in (passed[index] for index in original)
    ]
