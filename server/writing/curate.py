"""Judges the clients' demonstrations: which are on topic, carry their label, and are not
near-copies of one another (FDKT, step 3).

In chat form the LLM reads groups of similar demonstrations and answers which to keep; in completion
form it is asked how likely each text is under each label; an engine that can do neither leaves the
work to the rules. Nothing is dropped without being counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pydantic
from fedduet.conf.check import ConfigError, Section
from fedduet.lm.randomness import derive
from fedduet.lm.text.near_copy import drop_near_copies
from fedduet.lm.text.rules import Rules, control_heads, filter_texts
from fedduet.server.llm.base import LLM, ChatTurn, Progress, Request
from fedduet.server.writing.grouping import group_by_similarity
from fedduet.server.writing.likelihood import (
    can_judge_by_likelihood,
    label_likelihoods,
    layout,
    least_posterior,
)
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.prompts import judge_prompt, parse_judgement

Embed = Callable[[list[str]], np.ndarray]  # texts -> [n, d]


class CurateConfig(Section):
    """How demonstrations are judged. All values are our choice; FATE-LLM 2.2 groups and asks too,
    but not within a label."""

    enabled: bool = True
    """false: every demonstration that passes the rules is used."""
    judge: Literal["auto", "chat", "likelihood", "rules"] = "auto"
    """auto: chat for a chat LLM, likelihood where it scores text, else rules."""
    group_size: int = pydantic.Field(default=8, ge=1)
    """Demonstrations the LLM sees at once."""
    min_similarity: float = pydantic.Field(default=0.5, ge=-1, le=1)
    """Cosine within a group before small groups are joined."""
    keep_at_least: int = pydantic.Field(default=4, ge=0)
    """Demonstrations per domain and label that judgement never goes below."""
    near_copy: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word 3-grams."""
    min_tokens: int = pydantic.Field(default=5, ge=1)
    """Shorter texts are dropped."""
    label_posterior: float | None = pydantic.Field(default=None, ge=0, le=1)
    """Least p(label | text) to keep; null: 0.8 / number of labels."""
    fluency_quantile: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """This share of each domain, the least likely per token, is dropped."""
    max_new_tokens: int = pydantic.Field(default=128, ge=8)
    """Of the LLM's answer about one group."""


@dataclass(frozen=True)
class Demonstration:
    """One synthetic text of a client: what leaves its vault, with the label (index) it was
    generated for."""

    text: str
    label: int
    domain: str  # wording, e.g. "kitchen"
    client: str


@dataclass(frozen=True)
class Curated:
    """`kept`: in the order they came in. `groups`: indices into the input, what the LLM saw
    together (chat form only).

    `counts`: input; unknown_label, rule_<reason>, near_copy, off_label (judged out), not_fluent,
    put_back (kept after all, so that no label goes below keep_at_least), kept: input is kept plus
    the dropped, put_back subtracted; llm_groups, llm_unreadable, llm_failed: questions put to the
    LLM, answers that could not be read, and errors (both keep their whole group); prompt_tokens,
    new_tokens; judged_by_chat, judged_by_likelihood, not_judged: demonstrations by judge;
    empty_labels: (domain, label) pairs with nothing kept. `kept_per_label`: (domain, label index)
    -> kept, also for those with none.
    """

    kept: tuple[Demonstration, ...]
    counts: Mapping[str, int]
    groups: tuple[tuple[int, ...], ...] = ()
    kept_per_label: Mapping[tuple[str, int], int] = field(default_factory=dict)


def curate(
    demonstrations: Sequence[Demonstration],
    task: Task,
    llm: LLM,
    embed: Embed | None,
    config: CurateConfig,
    seed: int,
    on_progress: Progress | None = None,
) -> Curated:
    """The demonstrations worth showing, cleaned. `embed` gives [n, d] vectors and is only called in
    chat form.

    Raises ConfigError when `config.judge` asks of the engine what it cannot do.
    """
    judge = _judge_of(config, llm)
    counts: dict[str, int] = defaultdict(
        int, input=len(demonstrations), near_copy=0, off_label=0, put_back=0
    )
    if not config.enabled:
        return _curated(demonstrations, range(len(demonstrations)), task, counts, ())
    cleaned, second_choice = _screen(demonstrations, task, llm, config, counts)
    rank: dict[int, float] = {}  # how gladly a judged-out demonstration is put back
    groups: list[list[int]] = []
    if judge == "chat":
        if embed is None:
            raise ConfigError(
                "curate.judge: a chat judge reads groups of similar texts, so an embedder is"
                " needed; none was given"
            )
        groups = _groups(cleaned, embed, config)
        kept = _kept_by_chat(cleaned, groups, task, llm, config, seed, counts, on_progress)
    elif judge == "likelihood":
        kept, rank = _kept_by_likelihood(cleaned, task, llm, config, counts, on_progress)
    else:
        kept = set(cleaned)
        counts["not_judged"] += len(cleaned)
    kept |= _put_back(cleaned, second_choice, kept, rank, config.keep_at_least, counts)
    texts = cleaned | second_choice
    result = [texts.get(index, demonstration) for index, demonstration in enumerate(demonstrations)]
    return _curated(result, sorted(kept), task, counts, groups)


def _judge_of(config: CurateConfig, llm: LLM) -> str:
    scores = can_judge_by_likelihood(llm)
    if config.judge == "auto":
        return "chat" if llm.form == "chat" else "likelihood" if scores else "rules"
    if config.judge == "chat" and llm.form != "chat":
        raise ConfigError(
            f"curate.judge: found chat, but {llm.name} follows no instructions; allowed: auto,"
            " likelihood, rules"
        )
    if config.judge == "likelihood" and not scores:
        raise ConfigError(
            f"curate.judge: found likelihood, but {llm.name} cannot score text; allowed: auto,"
            " chat, rules"
        )
    return config.judge


def _curated(
    demonstrations: Sequence[Demonstration],
    kept: Sequence[int],
    task: Task,
    counts: dict[str, int],
    groups: Sequence[Sequence[int]],
) -> Curated:
    domains = dict.fromkeys(demonstration.domain for demonstration in demonstrations)
    per_label = {(domain, label): 0 for domain in domains for label in range(len(task.labels))}
    for index in kept:
        key = demonstrations[index].domain, demonstrations[index].label
        per_label[key] = per_label.get(key, 0) + 1
    counts["kept"] = len(kept)
    counts["empty_labels"] = sum(number == 0 for number in per_label.values())
    return Curated(
        tuple(demonstrations[i] for i in kept), dict(counts), tuple(map(tuple, groups)), per_label
    )


# -- Rules and near-copies -------------------------------------------------------------------------


def _screen(
    demonstrations: Sequence[Demonstration],
    task: Task,
    llm: LLM,
    config: CurateConfig,
    counts: dict[str, int],
) -> tuple[dict[int, Demonstration], dict[int, Demonstration]]:
    """(cleaned demonstrations by index; those that the rules dropped though some text is left, for
    labels with too few)."""
    cleaned: dict[int, Demonstration] = {}
    second_choice: dict[int, Demonstration] = {}
    heads = control_heads(layout(task))
    for members in _by_domain_and_label(enumerate(demonstrations)):
        if not _is_label(demonstrations[members[0]].label, task):
            counts["unknown_label"] += len(members)
            continue
        filtered = filter_texts(
            [demonstrations[index].text for index in members],
            llm.count_tokens,
            Rules(config.min_tokens),
            heads=heads,
        )
        for reason, number in filtered.dropped.items():
            counts[f"rule_{reason}"] += number
        passed = [(members[place], text) for place, text in filtered.kept]
        distinct = {
            passed[place][0]
            for place in drop_near_copies([text for _, text in passed], (), config.near_copy)
        }
        counts["near_copy"] += len(passed) - len(distinct)
        cleaned |= {
            index: replace(demonstrations[index], text=text)
            for index, text in passed
            if index in distinct
        }
        seen = {index for index, _ in passed}
        rest = [
            (index, " ".join(demonstrations[index].text.split()))
            for index in members
            if index not in seen
        ]
        second = drop_near_copies(
            [text for _, text in rest], [text for _, text in passed], config.near_copy
        )
        second_choice |= {
            rest[i][0]: replace(demonstrations[rest[i][0]], text=rest[i][1])
            for i in second
            if rest[i][1]
        }
    return dict(sorted(cleaned.items())), second_choice


def _is_label(label: object, task: Task) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(task.labels)


def _by_domain_and_label(indexed: Iterable[tuple[int, Demonstration]]) -> list[list[int]]:
    """Indices of the demonstrations of each (domain, label), in order of first appearance."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for index, demonstration in indexed:
        groups[demonstration.domain, repr(demonstration.label)].append(index)
    return list(groups.values())


def _put_back(
    cleaned: Mapping[int, Demonstration],
    second_choice: Mapping[int, Demonstration],
    kept: set[int],
    rank: Mapping[int, float],
    at_least: int,
    counts: dict[str, int],
) -> set[int]:
    """Dropped demonstrations that return so that each label has `at_least`: judged out before ruled
    out, best first."""
    back: set[int] = set()
    for members in _by_domain_and_label(sorted((cleaned | dict(second_choice)).items())):
        missing = at_least - len(kept.intersection(members))
        dropped = [index for index in members if index not in kept]
        dropped.sort(key=lambda index: (index in second_choice, -rank.get(index, 0.0), index))
        back.update(dropped[: max(missing, 0)])
    counts["put_back"] = len(back)
    return back


# -- The judges ------------------------------------------------------------------------------------


def _groups(
    cleaned: Mapping[int, Demonstration], embed: Embed, config: CurateConfig
) -> list[list[int]]:
    """Groups of similar demonstrations of one domain and label."""
    groups: list[list[int]] = []
    vectors = (
        dict(zip(cleaned, embed([one.text for one in cleaned.values()]), strict=True))
        if cleaned
        else {}
    )
    for members in _by_domain_and_label(cleaned.items()):
        found = group_by_similarity(
            np.stack([vectors[index] for index in members]),
            config.group_size,
            config.min_similarity,
        )
        groups.extend([members[place] for place in group] for group in found)
    return groups


def _kept_by_chat(
    cleaned: Mapping[int, Demonstration],
    groups: Sequence[Sequence[int]],
    task: Task,
    llm: LLM,
    config: CurateConfig,
    seed: int,
    counts: dict[str, int],
    on_progress: Progress | None,
) -> set[int]:
    requests = []
    for number, group in enumerate(groups):
        domain = cleaned[group[0]].domain
        turns = judge_prompt(
            task,
            "chat",
            domain,
            [Record(cleaned[index].text, cleaned[index].label, domain) for index in group],
        )
        prompt = tuple(ChatTurn(role, content) for role, content in turns)
        requests.append(
            Request(
                prompt, config.max_new_tokens, temperature=0.0, seed=derive(seed, "judge", number)
            )
        )
    kept: set[int] = set()
    for group, answer in zip(groups, llm.generate(requests, on_progress), strict=True):
        chosen = None if answer.finish == "error" else parse_judgement(answer.text, len(group))
        counts["prompt_tokens"] += answer.prompt_tokens
        counts["new_tokens"] += answer.new_tokens
        counts["llm_failed"] += answer.finish == "error"
        counts["llm_unreadable"] += chosen is None and answer.finish != "error"
        kept.update(group if chosen is None else (group[place] for place in chosen))
    counts["llm_groups"] += len(groups)
    counts["judged_by_chat"] += len(cleaned)
    counts["off_label"] += len(cleaned) - len(kept)
    return kept


def _kept_by_likelihood(
    cleaned: Mapping[int, Demonstration],
    task: Task,
    llm: LLM,
    config: CurateConfig,
    counts: dict[str, int],
    on_progress: Progress | None,
) -> tuple[set[int], dict[int, float]]:
    indices, ones = list(cleaned), list(cleaned.values())
    labels = [one.label for one in ones]
    scored = label_likelihoods(
        llm, task, [one.text for one in ones], [one.domain for one in ones], on_progress
    )
    own = scored.posteriors()[np.arange(len(ones)), labels] if ones else np.empty(0)
    on_label = own >= least_posterior(config.label_posterior, len(task.labels))
    fluent = np.ones(len(ones), dtype=bool)
    if config.fluency_quantile > 0:
        fluency, domains = scored.fluency(labels), np.array([one.domain for one in ones])
        for domain in set(domains.tolist()):
            here = domains == domain
            fluent[here] = fluency[here] >= np.quantile(fluency[here], config.fluency_quantile)
    counts["judged_by_likelihood"] += len(ones)
    counts["off_label"] += int((~on_label).sum())
    counts["not_fluent"] += int((on_label & ~fluent).sum())
    rank = dict(zip(indices, own.tolist(), strict=True))
    return {index for index, good in zip(indices, on_label & fluent, strict=True) if good}, rank
