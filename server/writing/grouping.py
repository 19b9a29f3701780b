"""Puts similar texts next to each other, in groups of bounded size, so that a judge sees
near-duplicates together."""

from __future__ import annotations

import numpy as np

BLOCK = 1024  # rows of the similarity matrix held at once


def nearest_neighbours(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, cosines), both [n, count], of each row's nearest other rows, nearest first.
    `vectors` [n, d] has rows of length 1. Holds `BLOCK` x n similarities at a time, so memory is
    O(n (count + BLOCK))."""
    n = len(vectors)
    count = min(count, n - 1)
    indices, cosines = np.empty((n, count), dtype=np.int64), np.empty((n, count), dtype=np.float32)
    for start in range(0, n, BLOCK):
        block = vectors[start : start + BLOCK] @ vectors.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf
        near = (
            np.argpartition(block, n - count, axis=1)[:, n - count :]
            if 0 < count < n
            else np.empty((len(block), 0), dtype=int)
        )
        near.sort(axis=1)  # ties go to the lower index
        values = np.take_along_axis(block, near, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[start : start + len(block)] = np.take_along_axis(near, order, axis=1)
        cosines[start : start + len(block)] = np.take_along_axis(values, order, axis=1)
    return indices, cosines


def group_by_similarity(vectors: np.ndarray, size: int, min_similarity: float) -> list[list[int]]:
    """Every row in exactly one group of at most `size` rows. The first free row gathers its nearest
    free rows whose cosine is at least `min_similarity`, and so on; groups left small are then
    packed together, so that few groups are half empty.

    `vectors` [n, d]; rows need not be normalised. Our choice; deterministic.
    """
    if len(vectors) == 0:
        return []
    unit = np.asarray(vectors, dtype=np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    indices, cosines = nearest_neighbours(unit, 4 * size)
    free = np.ones(len(unit), dtype=bool)
    groups: list[list[int]] = []
    for row in range(len(unit)):
        if not free[row]:
            continue
        near = indices[row][free[indices[row]] & (cosines[row] >= min_similarity)][: size - 1]
        group = [row, *near.tolist()]
        free[group] = False
        groups.append(group)
    return _packed(groups, size)


def _packed(groups: list[list[int]], size: int) -> list[list[int]]:
    """First-fit: groups, largest first, joined while they fit into `size`."""
    packed: list[list[int]] = []
    # free places -> groups of `packed`
    with_room: dict[int, list[int]] = {room: [] for room in range(size + 1)}
    for group in sorted(groups, key=len, reverse=True):
        room = next((room for room in range(len(group), size) if with_room[room]), None)
        if room is None:
            packed.append(list(group))
            with_room[size - len(group)].append(len(packed) - 1)
        else:
            place = with_room[room].pop(0)
            packed[place].extend(group)
            with_room[room - len(group)].append(place)
    return packed
