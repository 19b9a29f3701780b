"""Counts behind a test accuracy: who was taken for what, how sure the model was, how well it ranks.
Only a simulation hands them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedduet.wire.messages import Detail

BINS = 15  # of confidence, equally wide (Guo et al. 2017)


def detail(probabilities: np.ndarray, labels: Sequence[int]) -> Detail:
    """The counts of class probabilities [n, K] against the labels [n]."""
    true, kinds = np.asarray(labels), probabilities.shape[1]
    taken, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    confusion = np.zeros((kinds, kinds), dtype=int)
    np.add.at(confusion, (true, taken), 1)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = [
        np.bincount(place, values, BINS)
        for values in (np.ones(len(true)), taken == true, confidence)
    ]
    ranked = auroc(probabilities[:, 1], true == 1) if kinds == 2 else None
    return Detail(confusion.tolist(), np.stack(sums, axis=1).tolist(), ranked)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The share of pairs of a positive and a negative row that the scores order rightly, ties as
    half (Mann and Whitney); None where there is no such pair."""
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return None
    _, inverse, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[inverse]
    pairs = count * (len(positive) - count)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / pairs)
