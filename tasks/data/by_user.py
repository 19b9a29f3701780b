"""Splits for users as the unit of privacy: what one user brings, or takes away, moves no row of
another.

Neighbours differ in all of one user's rows, wherever these stand. So every user is in one split
only, found from a hash of the user's name, not from a draw over all rows; and rows are freed of
repeats within a user, since a text that two users share would come back for the second when the
first leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.pools import Pool
from fedduet.tasks.task import Record, Split

VALIDATION = 0.2  # share of the users who are not in test [O]


def place(seed: int, client: str, purpose: str, user: str) -> float:
    """Where in [0, 1) a user stands for one purpose, whoever else is there."""
    named = "\x1f".join(["tasks", str(seed), client, purpose, user])
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:7], "big") / 2**56


def split_by_user(
    config: TaskConfig, pool: Pool, kinds: int, seed: int, client: str
) -> tuple[Split, tuple[int, ...], int, int, int]:
    """A client's split, rows that training and validation were chosen from by label, and how many
    texts were cut, repeated, or in test.

    `task.validation_rows: 0` keeps no validation. `task.rows_per_client` and `task.test_rows` cut
    whole users from the end of an order by hash, the last one's rows within: for experiments, since
    another user may then come in for one that leaves.
    """
    unique = tuple({(row.user, row.text): row for row in reversed(pool.train)}.values())[::-1]
    if pool.test is None:
        tested = {
            row.user
            for row in unique
            if place(seed, client, "test", row.user) < config.test_fraction
        }
        test = tuple(row for row in unique if row.user in tested)
        rest = tuple(row for row in unique if row.user not in tested)
    else:
        test = pool.test
        in_test = {(row.user, row.text) for row in test}
        rest = tuple(row for row in unique if (row.user, row.text) not in in_test)
    share = 0.0 if config.validation_rows == 0 else VALIDATION
    held = {row.user for row in rest if place(seed, client, "validation", row.user) < share}
    train = _some(
        [row for row in rest if row.user not in held], config.rows_per_client, seed, client
    )
    validation = _some(
        [row for row in rest if row.user in held], config.validation_rows, seed, client
    )
    split = Split(train, validation, _some(test, config.test_rows, seed, client))
    labels = [row.label for row in rest]
    repeated = pool.repeated + len(pool.train) - len(unique)
    dropped = 0 if pool.test is None else len(unique) - len(rest)
    per_label = tuple(labels.count(label) for label in range(kinds))
    return split, per_label, pool.cut, repeated, dropped


def _some(rows: Sequence[Record], most: int | None, seed: int, client: str) -> tuple[Record, ...]:
    """At most `most` rows, of the users who stand first, in their own order."""
    if most is None or len(rows) <= most:
        return tuple(rows)
    order = sorted(
        range(len(rows)), key=lambda row: (place(seed, client, "rows", rows[row].user), row)
    )
    return tuple(rows[row] for row in sorted(order[:most]))
