"""How rows become clients, and a client's rows its training, validation and test split: seeded and
stratified by label."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from fedduet.conf.check import ConfigError

DIRICHLET_MIN_ROWS = 8  # a client with fewer is drawn again [our choice]
DIRICHLET_DRAWS = 1000


def named_random(seed: int, *names: str) -> random.Random:
    """The generator of one purpose: the same seed and names give the same numbers on every
    machine."""
    return random.Random("/".join(["tasks", str(seed), *names]))


def apportion(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """`total` whole units in proportion to `weights`, none above its cap; one each first, where
    `total` is enough for that.

    Highest averages (Webster / Sainte-Lague), ties to the earlier. The sum is min(total, room),
    where room counts the caps of those with a weight above 0.
    """
    alive = [i for i, weight in enumerate(weights) if weight > 0 and caps[i] > 0]
    counts = [0] * len(weights)
    total = min(total, sum(caps[i] for i in alive))
    if total >= len(alive):
        for i in alive:
            counts[i] = 1
    for _ in range(total - sum(counts)):
        best = max(
            (i for i in alive if counts[i] < caps[i]),
            key=lambda i: (weights[i] / (2 * counts[i] + 1), -i),
        )
        counts[best] += 1
    return counts


def by_label(labels: Sequence[int], kinds: int, rng: random.Random) -> list[list[int]]:
    """The row numbers of each label index, in a random order."""
    groups: list[list[int]] = [[] for _ in range(kinds)]
    for row, label in enumerate(labels):
        groups[label].append(row)
    for group in groups:
        rng.shuffle(group)
    return groups


def stratified(labels: Sequence[int], kinds: int, count: int, rng: random.Random) -> list[int]:
    """`count` row numbers (all, when there are fewer) in proportion to the labels; sorted."""
    groups = by_label(labels, kinds, rng)
    sizes = [len(group) for group in groups]
    taken = apportion(count, sizes, sizes)
    return sorted(
        row for group, number in zip(groups, taken, strict=True) for row in group[:number]
    )


def sizes(available: int, rows: int | None, validation: int | None) -> tuple[int, int]:
    """(training rows, validation rows) of a client with `available` rows.

    `rows` None asks for all, `validation` None for a quarter of the training rows, rounded up.
    Where there are too few rows for both, validation keeps what training leaves over, but at least
    a fifth of the rows (or as many as asked for) [our choice].
    """
    if rows is None:
        wanted = math.ceil(available / 5) if validation is None else min(validation, available // 2)
        return available - wanted, wanted
    wanted = math.ceil(rows / 4) if validation is None else validation
    if wanted:
        wanted = min(wanted, max(available - rows, math.ceil(available / 5)))
    return min(rows, available - wanted), wanted


def train_and_validation(
    labels: Sequence[int], kinds: int, rows: int | None, validation: int | None, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Disjoint row numbers for training and validation, each in proportion to the labels; sorted.

    A label with two rows or more keeps one for validation, when there is any validation.
    """
    groups = by_label(labels, kinds, rng)
    counts = [len(group) for group in groups]
    for_training, for_validation = sizes(len(labels), rows, validation)
    keep = 1 if for_validation else 0
    taken = apportion(
        for_training, counts, [count - keep if count > 1 else count for count in counts]
    )
    held = apportion(
        for_validation,
        counts,
        [count - number for count, number in zip(counts, taken, strict=True)],
    )
    train = [row for group, number in zip(groups, taken, strict=True) for row in group[:number]]
    rest = [
        row
        for group, number, more in zip(groups, taken, held, strict=True)
        for row in group[number : number + more]
    ]
    return sorted(train), sorted(rest)


def test_rows_of(
    labels: Sequence[int], kinds: int, fraction: float, rng: random.Random
) -> list[int]:
    """Row numbers of a test split carved from a client's rows, stratified; two rows of a label stay
    behind for the others."""
    groups = by_label(labels, kinds, rng)
    counts = [len(group) for group in groups]
    taken = apportion(
        max(1, round(fraction * len(labels))), counts, [max(0, count - 2) for count in counts]
    )
    return sorted(
        row for group, number in zip(groups, taken, strict=True) for row in group[:number]
    )


def iid(rows: int, clients: int, rng: random.Random) -> list[list[int]]:
    """Shuffled rows dealt out in turn: sizes differ by one at most."""
    order = list(range(rows))
    rng.shuffle(order)
    return [sorted(order[client::clients]) for client in range(clients)]


def dirichlet(
    labels: Sequence[int], kinds: int, clients: int, alpha: float, rng: random.Random
) -> list[list[int]]:
    """For each label, shares of the clients drawn from a symmetric Dirichlet distribution
    (Yurochkin et al. 2019).

    Drawn again until every client has DIRICHLET_MIN_ROWS rows. A client's only row of a label goes
    to the client with the most of it, so that each label a client has can be both trained on and
    validated. Raises ConfigError when no draw will do.
    """
    for _ in range(DIRICHLET_DRAWS):
        shares: list[list[int]] = [[] for _ in range(clients)]
        for group in by_label(labels, kinds, rng):
            for share, part in zip(
                shares, _cut(group, _proportions(alpha, clients, rng)), strict=True
            ):
                share.extend(part)
        if min(len(share) for share in shares) >= DIRICHLET_MIN_ROWS:
            return [sorted(share) for share in shares]
    raise ConfigError(
        f"task.dirichlet_alpha: {alpha} over {clients} clients and {len(labels)} rows left a client"
        f" with fewer than {DIRICHLET_MIN_ROWS} rows in {DIRICHLET_DRAWS} draws; raise"
        " dirichlet_alpha or lower the number of clients"
    )


def _proportions(alpha: float, clients: int, rng: random.Random) -> list[float]:
    draws = [rng.gammavariate(alpha, 1.0) for _ in range(clients)]
    # tiny alpha can underflow every draw to 0: then the last client gets all
    total = sum(draws) or 1.0
    return [draw / total for draw in draws]


def _cut(group: list[int], proportions: list[float]) -> list[list[int]]:
    edges, total = [0], 0.0
    for proportion in proportions[:-1]:
        total += proportion
        edges.append(min(len(group), round(total * len(group))))
    edges.append(len(group))
    parts = [group[start:end] for start, end in itertools.pairwise(edges)]
    largest = max(parts, key=len)
    for part in parts:
        if len(part) == 1 and part is not largest:
            largest.append(part.pop())
    return parts
