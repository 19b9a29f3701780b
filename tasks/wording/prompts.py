"""Prompts in chat and completion form: filled from the task's wording, within a budget of tokens;
texts stay data (see `one_line`).

Answers are read by `fedduet.tasks.wording.parse` and `fedduet.tasks.wording.judgement`, whose
functions can be had from here too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

from fedduet.lm.text.rules import control_heads, plain
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.judgement import parse_judgement
from fedduet.tasks.wording.parse import parse_generated

__all__ = [
    "augment_prompt",
    "fill",
    "judge_prompt",
    "parse_generated",
    "parse_judgement",
    "task_answer",
    "task_prompt",
]

Prompt = str | tuple[tuple[str, str], ...]  # completion: one string; chat: (role, content) turns

FORMS = ("chat", "completion", "list")
STOP = "\n\n"  # ends one document in completion form
TURN_TOKENS = 8  # what a chat template adds to a turn, an upper estimate [our choice]
NO_EXAMPLES = "(none)"
OPEN_LIST = "\n\nNumbers to keep: ["
BRACED = re.compile(r"\{(\w+)\}")


def fill(template: str, **values: object) -> str:
    """`template` with every `{name}` of `values` replaced, in one pass: braces in a value, and all
    other braces, stay."""
    return BRACED.sub(lambda match: str(values.get(match[1], match[0])), template)


def document(task: Task, record: Record, domain: str) -> str:
    """One labelled text as a base LLM knows it; line breaks inside the text become spaces, and
    heads of the layout lose their colon."""
    return _control(task, record.domain or domain, record.label) + _without_colons(
        task.prompts.completion_document or task.control_code, record.text
    )


@functools.lru_cache(maxsize=8192)  # demonstrations come again and again
def one_line(text: str) -> str:
    """`text` as data in a prompt whose structure is lines: on one line, without special tokens and
    invisible characters."""
    return " ".join(plain(" ".join(text.split())).split())


@functools.lru_cache(maxsize=8192)
def _without_colons(layout: str, text: str) -> str:
    """`text` on one line; "Rating: negative" becomes "Rating negative": a base LLM takes a head for
    the next document wherever it is."""
    text = one_line(text)
    for head in control_heads(layout):
        text = re.sub(rf"(?<!\w){re.escape(head)}", head.rstrip(": "), text, flags=re.IGNORECASE)
    return text


def augment_prompt(
    task: Task,
    form: str,
    domain: str,
    label: int,
    demonstrations: Sequence[Record],
    n: int,
    count_tokens: Callable[[str], int],
    budget_tokens: int,
) -> tuple[Prompt, list[Record]]:
    """(a few-shot prompt for new texts of one label, of at most `budget_tokens` tokens; the
    demonstrations it shows, in the order given).

    Chat form asks for `n` texts, one a line as `label: text`. List form is a numbered list of texts
    of the wanted label alone that a model goes on with, some texts to a request; examples of other
    labels are left out. Completion form shows documents
    separated by a blank line and ends in the open control code of the wanted label; it yields one
    text (`n` is not used), ended by STOP. What does not fit is left out whole:
    demonstrations are tried one of each label in turn, the wanted label first, so that a long text
    costs its own label's place only. Raises ValueError for an unknown form or label, and when the
    prompt has more tokens than the budget with no demonstration.
    """
    _check(task, form, label)
    if form == "list":
        demonstrations = [record for record in demonstrations if record.label == label]
    written = [_shown(task, form, record, domain) for record in demonstrations]
    prompt = _augment(task, form, domain, label, (), n)
    bare = _tokens(prompt, count_tokens)
    if bare > budget_tokens:
        raise ValueError(
            f"the {form} prompt has {bare} tokens without any demonstration, more than the budget"
            f" of {budget_tokens}"
        )
    left = budget_tokens - bare
    kept: list[int] = []
    for place in _in_turn(demonstrations, label, len(task.labels)):
        cost = count_tokens(written[place]) + 1  # 1: what joins it to the next
        if cost <= left:
            left -= cost
            kept.append(place)
    while kept:  # tokens of the parts need not add up to those of the whole
        whole = _augment(task, form, domain, label, [written[place] for place in sorted(kept)], n)
        if _tokens(whole, count_tokens) <= budget_tokens:
            return whole, [demonstrations[place] for place in sorted(kept)]
        kept.pop()
    return prompt, []


def judge_prompt(task: Task, form: str, domain: str, members: Sequence[Record]) -> Prompt:
    """Asks which of a group of texts, numbered from 0, to keep. Completion form ends in an open
    JSON list.

    Raises ValueError for an unknown form.
    """
    _check(task, form, 0)
    numbered = "\n".join(
        f"{number}. {task.labels[m.label]}: {one_line(m.text)}" for number, m in enumerate(members)
    )
    values = {
        "domain": domain,
        "labels": labels_in_words(task),
        "noun": task.noun,
        "members": numbered,
    }
    question = fill(task.prompts.chat_judge, **values)
    if form != "chat":
        return question + OPEN_LIST
    return (("user", question),)


def task_prompt(task: Task, form: str, domain: str, text: str) -> Prompt:
    """V(x): asks for the label of `text`. Completion form ends where the label comes, see
    `task_answer`.

    The wording is the control code's with its parts in another order [our choice]: "Product: d /
    Rating: y / Review: x" becomes "Product: d / Review: x / Rating: y"; a control code that has its
    label on its last line gives "Review: x / Label: y", by the noun. Raises ValueError for an
    unknown form.
    """
    _check(task, form, 0)
    values = {"domain": domain, "noun": task.noun, "text": one_line(text)}
    if form != "chat":
        return fill(_task_template(task).partition("{label}")[0].rstrip(), **values)
    asked = (
        "Domain: {domain}\n\n{text}\n\nWhich label does this {noun} have:"
        f" {', '.join(task.labels)}? Answer with the label only."
    )
    return (("user", fill(asked, **values)),)


def task_answer(task: Task, form: str, label: int) -> str:
    """What V(x) is answered with: the label's wording, after a space in completion form."""
    _check(task, form, label)
    return f" {task.labels[label]}" if form != "chat" else task.labels[label]


def _task_template(task: Task) -> str:
    lines = (
        task.prompts.completion_document or task.control_code + task.separator + "{text}"
    ).split("\n")
    opening = next(number for number, line in enumerate(lines) if "{text}" in line)
    asking = [line for line in lines[:opening] if "{label}" in line]
    if not asking or any("{label}" in line for line in lines[opening:]):
        return f"{task.noun.capitalize()}: {{text}}\nLabel: {{label}}"
    return "\n".join(
        [*(line for line in lines[:opening] if line not in asking), *lines[opening:], *asking]
    )


def _augment(
    task: Task, form: str, domain: str, label: int, shown: Sequence[str], n: int
) -> Prompt:
    if form == "completion":
        # a model's next token brings its own leading space
        opening = _control(task, domain, label).rstrip(" \t")
        return STOP.join([*shown, opening])
    if form == "list":
        kind = task.labels[label] + (f" ({task.meaning(label)})" if task.meanings else "")
        about = task.described(domain)
        numbered = [f"{number}. {text}" for number, text in enumerate(shown, 1)]
        opening = f"{about[:1].upper()}{about[1:]}, all of them {kind}:"
        return "\n".join([opening, *numbered, f"{len(shown) + 1}."])
    values = {
        "domain": domain,
        "label": task.labels[label],
        "labels": labels_in_words(task),
        "meaning": task.meaning(label),
        "n": n,
        "noun": task.noun,
    }
    examples = "\n".join(shown) or NO_EXAMPLES
    turns = [("user", fill(task.prompts.chat_augment, examples=examples, **values))]
    if task.prompts.chat_system:
        turns.insert(0, ("system", fill(task.prompts.chat_system, **values)))
    return tuple(turns)


def labels_in_words(task: Task) -> str:
    """The labels in order, each with its meaning where it has one."""
    if not task.meanings:
        return ", ".join(task.labels)
    pairs = zip(task.labels, task.meanings, strict=True)
    return "; ".join(f"{label} ({meaning})" for label, meaning in pairs)


def _shown(task: Task, form: str, record: Record, domain: str) -> str:
    if form == "list":
        return one_line(record.text)
    if form == "completion":
        return document(task, record, domain)
    return f"{task.labels[record.label]}: {one_line(record.text)}"


def _control(task: Task, domain: str, label: int) -> str:
    template = task.prompts.completion_document or task.control_code + task.separator + "{text}"
    opening = template.removesuffix("{text}")
    return _filled_control(opening, domain, task.labels[label], task.meaning(label), task.noun)


@functools.lru_cache(maxsize=1024)
def _filled_control(template: str, domain: str, label: str, meaning: str, noun: str) -> str:
    return fill(template, domain=domain, label=label, meaning=meaning, noun=noun)


def _in_turn(records: Sequence[Record], first: int, labels: int) -> list[int]:
    """Places of `records`, one of each label in turn beginning with label `first`."""
    queues: list[list[int]] = [[] for _ in range(labels)]
    for place, record in enumerate(records):
        queues[(record.label - first) % labels].append(place)
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _tokens(prompt: Prompt, count_tokens: Callable[[str], int]) -> int:
    if isinstance(prompt, str):
        return count_tokens(prompt)
    return sum(count_tokens(content) + TURN_TOKENS for _, content in prompt)


def _check(task: Task, form: str, label: int) -> None:
    if form not in FORMS:
        raise ValueError(f"prompt form: found {form!r}; allowed: {', '.join(FORMS)}")
    if not 0 <= label < len(task.labels):
        raise ValueError(f"label index: found {label}; allowed: 0 to {len(task.labels) - 1}")
