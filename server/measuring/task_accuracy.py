"""The LLM's own accuracy at the task: V(x) -> y by the likeliest label, and the examples from which
it learns to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from fedduet.conf.check import ConfigError
from fedduet.lm.text.words import cut_to_tokens
from fedduet.server.llm.base import LLM, ChatTurn, Example, Progress, Prompt, ScoresText
from fedduet.strategies.run.texts import Texts
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.prompts import task_answer, task_prompt

ROOM = 16  # tokens left for the label and what a chat template adds [O]


def label_probabilities(
    llm: LLM,
    task: Task,
    texts: Sequence[str],
    domains: Sequence[str],
    on_progress: Progress | None = None,
) -> np.ndarray:
    """[n, K]: p(y | V(x)), softmax over the labels of the summed log-probabilities of their
    wordings; rows add up to 1.

    A text too long for the context is cut. Raises ConfigError for an engine that cannot score text.
    """
    if not isinstance(llm, ScoresText):
        raise ConfigError(
            f"{llm.name} cannot score given text, so its own accuracy cannot be measured"
        )
    labels = range(len(task.labels))
    pairs = []
    for text, domain in zip(texts, domains, strict=True):
        prompt = asking(llm, task, domain, text)
        pairs += [(prompt, task_answer(task, llm.form, label)) for label in labels]
    scores = np.array(llm.continuation_logprobs(pairs, on_progress), dtype=np.float64).reshape(
        len(texts), len(task.labels)
    )
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def llm_accuracy(
    llm: LLM,
    task: Task,
    records: Mapping[str, Sequence[Record]],
    on_progress: Progress | None = None,
) -> dict[str, float]:
    """Share of right answers by site; {} for an engine that cannot score text."""
    if not isinstance(llm, ScoresText):
        return {}
    flat = [(site, record) for site, of in sorted(records.items()) for record in of]
    domains = [record.domain or task.domains[site] for site, record in flat]
    chosen = label_probabilities(
        llm, task, [record.text for _, record in flat], domains, on_progress
    ).argmax(axis=1)
    right: dict[str, list[bool]] = {}
    for (site, record), label in zip(flat, chosen, strict=True):
        right.setdefault(site, []).append(bool(label == record.label))
    return {site: sum(of) / len(of) for site, of in right.items()}


def task_examples(task: Task, llm: LLM, texts: Texts) -> list[Example]:
    """Labelled texts as questions with their answers; weights as they are."""
    return [
        Example(
            asking(llm, task, task.domains[site], text),
            task_answer(task, llm.form, label),
            data.weights[place] if data.weights else 1.0,
        )
        for site, data in sorted(texts.items())
        for place, (text, label) in enumerate(zip(data.texts, data.labels, strict=True))
    ]


def asking(llm: LLM, task: Task, domain: str, text: str) -> Prompt:
    """V(x) for this engine, the text cut where the context ends."""
    bare = task_prompt(task, llm.form, domain, "")
    used = llm.count_tokens(bare if isinstance(bare, str) else bare[0][1])
    prompt = task_prompt(
        task,
        llm.form,
        domain,
        cut_to_tokens(text, llm.count_tokens, max(8, llm.context - used - ROOM)),
    )
    return (
        prompt
        if isinstance(prompt, str)
        else tuple(ChatTurn(role, content) for role, content in prompt)
    )
