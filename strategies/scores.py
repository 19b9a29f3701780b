"""From the sites' scores to rewards, and from rewards to the texts that are accepted; plain
functions on arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from fedduet.strategies.run.texts import Texts
from fedduet.wire.messages import LabelledTexts

Aggregation = Literal["uniform", "rows", "median"]


def problem(scores: Sequence[float], wanted: int) -> str:
    """What is wrong with a site's scores ("" if nothing): too few or too many, not a number, or
    outside [0, 1]."""
    if len(scores) != wanted:
        return f"{len(scores)} scores for {wanted} texts"
    for place, score in enumerate(scores):
        if math.isnan(score) or not 0 <= score <= 1:
            return f"score {place} is {score}; allowed: 0 to 1"
    return ""


def aggregate(
    scores: Mapping[str, Sequence[float]], rows: Mapping[str, int], how: Aggregation
) -> np.ndarray:
    """[n] rewards r = sum_k w_k s_k from every site's scores [n]. "uniform": w_k = 1 / K (the
    default of METHODS); "rows": by the number of private records; "median": over the sites, which a
    few wrong ones cannot move."""
    sites = sorted(scores)
    table = np.array([scores[site] for site in sites], dtype=np.float64)
    if how == "median":
        return np.median(table, axis=0)
    share = np.array([rows[site] if how == "rows" else 1 for site in sites], dtype=np.float64)
    return share / share.sum() @ table


def split(rewards: np.ndarray, texts: Texts) -> dict[str, list[float]]:
    """Rewards of all texts, in the order of `concatenate`d sites, back by the site whose domain
    they were written for."""
    by_site, at = {}, 0
    for site, data in sorted(texts.items()):
        by_site[site] = [float(reward) for reward in rewards[at : at + len(data)]]
        at += len(data)
    return by_site


def no_opinion(texts: Texts, feedback: str) -> float:
    """The score of a site that cannot tell: 1 / K where scores are probabilities of one of K
    labels, 0.5 where they are votes."""
    labels = {label for data in texts.values() for label in data.labels}
    return 0.5 if feedback == "votes" else 1 / max(2, len(labels))


def accept(
    texts: Texts, rewards: Mapping[str, Sequence[float]], threshold: float, keep_at_least: int
) -> tuple[Texts, list[str]]:
    """The texts with a reward of at least `threshold`, weighted by it, and the labels that had too
    few.

    A (site, label) with fewer than `keep_at_least` such texts keeps its best `keep_at_least`; it is
    named in the second part.
    """
    accepted, short = {}, []
    for site, data in sorted(texts.items()):
        chosen: list[int] = []
        for label in sorted(set(data.labels)):
            best = sorted(
                (i for i in range(len(data)) if data.labels[i] == label),
                key=lambda i: -rewards[site][i],
            )
            good = [i for i in best if rewards[site][i] >= threshold]
            if len(good) < min(keep_at_least, len(best)):
                short.append(
                    f"{site}, label {label}: {len(good)} of {len(best)} texts accepted, its best"
                    f" {keep_at_least} kept"
                )
                good = best[:keep_at_least]
            chosen += good
        chosen.sort()
        # a text kept at reward 0 must not take the whole set's weight to 0
        weights = [max(rewards[site][i], 1e-3) for i in chosen]
        accepted[site] = LabelledTexts(
            [data.texts[i] for i in chosen], [data.labels[i] for i in chosen], weights
        )
    return accepted, short
