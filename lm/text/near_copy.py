"""Finds texts that are near-copies of others: exact Jaccard similarity of word shingles, without
comparing all pairs.

A pair can only reach Jaccard similarity t if the |x| - ceil(t |x|) + 1 rarest shingles of x have
one in the other (prefix filter of AllPairs and PPJoin: Bayardo, Ma, Srikant, WWW 2007; Xiao et al.,
WWW 2008), so only those are looked up. Unlike MinHash this misses nothing, needs no random
permutations, and gives the same answer every time.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from fedduet.lm.text.words import shingles, units

# units per shingle, our choice: one word changed in twenty leaves a similarity of 15/21
SHINGLE = 3
# up to so many candidate pairs are compared set by set, more by counting shared shingles of all
# texts at once
_FEW = 32


def similarity(one: str, other: str, length: int = SHINGLE) -> float:
    """Jaccard similarity in [0, 1] of the two texts' sets of shingles; 1.0 when both are empty."""
    first, second = set(shingles(units(one), length)), set(shingles(units(other), length))
    return len(first & second) / len(first | second) if first or second else 1.0


def drop_near_copies(
    candidates: Sequence[str],
    references: Sequence[str] = (),
    threshold: float = 0.7,
    length: int = SHINGLE,
) -> list[int]:
    """Indices, ascending, of the candidates whose similarity to every reference and every kept
    earlier candidate is below `threshold` (0 < threshold <= 1). Case, white space and punctuation
    are ignored; empty texts are copies of each other.

    Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(
            f"near-copy threshold is {threshold}, allowed is more than 0 and at most 1"
        )
    ranked = _ranked([*references, *candidates], length)
    sizes = np.array([len(one) for one in ranked], dtype=np.int64)
    holders = _holders(ranked)
    present = np.zeros(len(ranked), dtype=bool)  # references, and candidates kept so far
    present[: len(references)] = True
    same = set(ranked[: len(references)])
    for text in range(len(references), len(ranked)):
        if ranked[text] in same:
            continue
        if not _has_near_copy(ranked[text], ranked, holders, sizes, present, threshold):
            present[text] = True
            same.add(ranked[text])
    return np.flatnonzero(present[len(references) :]).tolist()


def _ranked(texts: Sequence[str], length: int) -> list[tuple[int, ...]]:
    """Each text's distinct shingles as ranks, rarest first; rank order is by document frequency,
    then first appearance."""
    sets = [dict.fromkeys(shingles(units(text), length)) for text in texts]
    frequency = Counter(shingle for one in sets for shingle in one)
    rank = {
        shingle: place for place, shingle in enumerate(sorted(frequency, key=frequency.__getitem__))
    }
    return [tuple(sorted(rank[shingle] for shingle in one)) for one in sets]


def _holders(ranked: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """For each shingle rank the ascending indices of the texts that hold it."""
    flat = np.fromiter((rank for one in ranked for rank in one), dtype=np.int64)
    owner = np.repeat(np.arange(len(ranked)), [len(one) for one in ranked])
    order = np.argsort(flat, kind="stable")
    return np.split(owner[order], np.cumsum(np.bincount(flat))[:-1]) if len(flat) else []


def _has_near_copy(
    own: tuple[int, ...],
    ranked: Sequence[tuple[int, ...]],
    holders: Sequence[np.ndarray],
    sizes: np.ndarray,
    present: np.ndarray,
    threshold: float,
) -> bool:
    """True when a present text reaches the threshold with the text whose shingles are `own`."""
    prefix = own[: len(own) - math.ceil(threshold * len(own) - 1e-9) + 1]
    if not prefix:
        return False
    sharing = np.concatenate([holders[shingle] for shingle in prefix])
    found = np.unique(sharing[present[sharing]])
    if len(found) <= _FEW:
        common = np.array(
            [len(set(own).intersection(ranked[other])) for other in found], dtype=np.int64
        )
    else:
        everywhere = np.concatenate([holders[shingle] for shingle in own])
        place = np.searchsorted(found, everywhere).clip(max=len(found) - 1)
        common = np.bincount(place[found[place] == everywhere], minlength=len(found))
    return bool((common >= threshold * (len(own) + sizes[found] - common) - 1e-9).any())
