"""Texts on a report: samples of what left the sites and of what the LLM wrote, with their nearest
synthetic neighbours; sites' scores.

All of it is read from the run folder's artefacts, which hold what left the sites and what the LLM
wrote, never a private text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.scripts.reporting import charts
from fedduet.scripts.reporting.html import cards, opened, rows_of, spread, table

SAMPLES = 12  # texts of each kind on the page [O]
SHOWN = 4  # of these, before the reader unfolds the rest [O]
NEIGHBOURS = 2000  # texts among which a neighbour is looked for [O]


def samples(folder: Path, labels: Sequence[str]) -> str:
    """Demonstrations beside the LLM's texts nearest to them, and the LLM's texts beside the nearest
    demonstrations."""
    released, written = (
        rows_of(folder / "demonstrations.jsonl"),
        rows_of(folder / "task_data.jsonl"),
    )
    feedback = rows_of(folder / "feedback.jsonl")
    own = [row for row in written if not row["phase"].endswith(("zero_shot", "untuned"))] or written
    parts = []
    if released:
        shown = spread(released, SAMPLES)
        near = _nearest(
            shown,
            own or released,
            "nearest text of the LLM" if own else "nearest other demonstration",
        )
        entries = [
            (f"{row['client']}, {label_name(row, labels)}", row["text"], one)
            for row, one in zip(shown, near, strict=True)
        ]
        parts.append(
            f"<h3>Demonstrations that left the sites</h3><p>{len(released):,} DP-synthetic texts;"
            " some of them:</p>"
        )
        parts.append(_folded(entries))
    if feedback:
        shown = sorted(spread(feedback, SAMPLES), key=lambda row: (row["round"], -row["reward"]))
        known, said = (
            (released, "nearest demonstration")
            if released
            else (feedback, "nearest other text of the LLM")
        )
        near = _nearest(shown, known, said)
        entries = [
            (
                f"round {row['round']}, for {row['client']}, {label_name(row, labels)}: reward"
                f" {row['reward']:.2f}, " + ("accepted" if row["accepted"] else "not accepted"),
                row["text"],
                one,
            )
            for row, one in zip(shown, near, strict=True)
        ]
        parts.append("<h3>What the LLM wrote and how the sites scored it</h3>" + _folded(entries))
    elif own:
        shown = spread(own, SAMPLES)
        near = _nearest(
            shown,
            released or own,
            "nearest demonstration" if released else "nearest other text of the LLM",
        )
        entries = [
            (f"for {row['client']}, {label_name(row, labels)}", row["text"], one)
            for row, one in zip(shown, near, strict=True)
        ]
        parts.append("<h3>What the LLM wrote</h3>" + _folded(entries))
    if not parts:
        return ""
    how = (
        "Neighbours are synthetic texts too, by the cosine of hashed words and word pairs. Private"
        " texts are not compared."
    )
    return f"<p>{how}</p>" + "".join(parts)


def scores(folder: Path) -> str:
    """CrossLM: rewards of each round's texts, and each site's mean score; "" for a run without
    scores."""
    feedback = rows_of(folder / "feedback.jsonl")
    if not feedback:
        return ""
    rounds = sorted({row["round"] for row in feedback})
    sites = sorted({site for row in feedback for site in row["scores"]})
    spans: dict[str, tuple[charts.Span, list[float]]] = {}
    lines = [
        [
            "round",
            "texts",
            "accepted",
            "mean reward",
            "10 % to 90 % of rewards",
            *(f"{site}'s mean score" for site in sites),
        ]
    ]
    for number in rounds:
        rows = [row for row in feedback if row["round"] == number]
        rewards = np.array([row["reward"] for row in rows])
        low, high = np.quantile(rewards, (0.1, 0.9))
        by_site = {
            site: np.mean(
                [row["scores"][site] for row in rows if site in row["scores"]] or [np.nan]
            )
            for site in sites
        }
        spans[f"round {number}"] = (
            (float(rewards.mean()), float(low), float(high)),
            [float(one) for one in by_site.values()],
        )
        accepted = sum(row["accepted"] for row in rows)
        each = [f"{value:.3f}" for value in by_site.values()]
        lines.append(
            [
                str(number),
                str(len(rows)),
                str(accepted),
                f"{rewards.mean():.3f}",
                f"{low:.3f} to {high:.3f}",
                *each,
            ]
        )
    said = (
        "rewards by round: mean, and from the lowest to the highest tenth; a dot for each site's"
        " mean score"
    )
    return charts.intervals(spans, f"round {rounds[-1]}", said) + table(lines, "scores by round")


def _folded(entries: Sequence[tuple[str, str, str]]) -> str:
    rest = f"{len(entries) - SHOWN} more"
    return cards(entries[:SHOWN]) + (
        opened(rest, cards(entries[SHOWN:])) if len(entries) > SHOWN else ""
    )


def label_name(row: Mapping[str, Any], labels: Sequence[str]) -> str:
    return labels[row["label"]] if 0 <= row["label"] < len(labels) else f"label {row['label']}"


def _nearest(
    rows: Sequence[Mapping[str, Any]], among: Sequence[Mapping[str, Any]], what: str
) -> list[str]:
    """For each row the most similar other text of `among`, its own site's where there are any."""
    from fedduet.lm.text.embed import hashed_embeddings

    found = []
    for row in rows:
        others = [one for one in among if one["text"] != row["text"]]
        texts = [one["text"] for one in others if one["client"] == row["client"]] or [
            one["text"] for one in others
        ]
        texts = texts[:NEIGHBOURS]
        if not texts:
            found.append("")
            continue
        vectors = hashed_embeddings([row["text"], *texts])
        similar = vectors[1:] @ vectors[0]
        found.append(f"{what} ({similar.max():.2f}): {texts[int(similar.argmax())]}")
    return found


def label_names(config: Mapping[str, Any]) -> list[str]:
    """The task's label words as the configuration has them, in the order of their numbers; none
    where it leaves them open."""
    labels = config["task"].get("labels")
    words = labels.values() if isinstance(labels, dict) else labels or []
    return list(dict.fromkeys(str(one) for one in words))  # several raw values may share a word
