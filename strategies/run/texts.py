"""Labelled texts by site, and how sets of them are put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedduet.wire.messages import LabelledTexts

Texts = dict[str, LabelledTexts]  # by site
# by the site whose domain the texts were written for, in their order
Rewards = Mapping[str, Sequence[float]]


def merge(*parts: Texts) -> Texts:
    """Data of several rounds, by site, in order."""
    sites = sorted({site for part in parts for site in part})
    return {site: concatenate([part[site] for part in parts if site in part]) for site in sites}


def concatenate(parts: Sequence[LabelledTexts]) -> LabelledTexts:
    """Several sets as one; weights and soft labels stay only when every non-empty part has them."""
    full = [part for part in parts if len(part)]
    return LabelledTexts(
        [text for part in full for text in part.texts],
        [label for part in full for label in part.labels],
        (
            [weight for part in full for weight in part.weights]
            if all(part.weights for part in full)
            else []
        ),
        (
            [row for part in full for row in part.soft_labels]
            if all(part.soft_labels for part in full)
            else []
        ),
    )


def first_of_label(texts: Texts, number: int) -> Texts:
    """The first `number` texts of each label, by site, in their order."""
    chosen = {}
    for site, data in texts.items():
        seen: Counter[int] = Counter()
        rows = []
        for row, label in enumerate(data.labels):
            seen[label] += 1
            if seen[label] <= number:
                rows.append(row)
        chosen[site] = LabelledTexts(
            [data.texts[row] for row in rows], [data.labels[row] for row in rows]
        )
    return chosen


def shared_by_all(texts: Texts, domains: Mapping[str, str] | None = None) -> Texts:
    """Everybody's data for every site; with `domains` each text has its domain in front (METHODS,
    FDKT step 6: multi-task, how is our choice)."""
    everything = [
        (
            replace(data, texts=[f"{domains[site]}: {text}" for text in data.texts])
            if domains
            else data
        )
        for site, data in sorted(texts.items())
    ]
    return dict.fromkeys(texts, concatenate(everything))
