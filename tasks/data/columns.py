"""The columns of a file that nobody has described yet, and a guess which of them a task means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fedduet.tasks.data.read import read_values
from fedduet.tasks.labels import raw_value

MOST_VALUES = 20  # different values of a column that may hold labels or sites [O]
LABEL_NAMES = (
    "label",
    "class",
    "category",
    "sentiment",
    "rating",
    "target",
    "intent",
    "urgen",
    "topic",
    "code",
)
SITE_NAMES = (
    "site",
    "client",
    "hospital",
    "shop",
    "store",
    "branch",
    "clinic",
    "ward",
    "region",
    "domain",
    "centre",
    "center",
)


@dataclass(frozen=True)
class Column:
    """One column: filled cells, the median of their words, and its values with how often each
    stands there (none where there are more than MOST_VALUES)."""

    name: str
    filled: int
    words: int
    values: dict[str, int]


def columns_of(path: Path) -> list[Column]:
    """Every column of `path`, in its order; rows that are broken are passed over. Raises
    ConfigError for a file that cannot be read."""
    cells: dict[str, list[str]] = {}
    for _, values in read_values(path, on_bad=lambda _: None):
        for name, value in values.items():
            if value is not None and (text := raw_value(value)):
                cells.setdefault(name, []).append(text)
            else:
                cells.setdefault(name, [])
    found = []
    for name, texts in cells.items():
        counts = Counter(texts)
        words = int(np.median([len(text.split()) for text in texts])) if texts else 0
        few = dict(counts.most_common()) if len(counts) <= MOST_VALUES else {}
        found.append(Column(name, len(texts), words, few))
    return found


def guess(columns: Sequence[Column]) -> dict[str, str | None]:
    """Which column may hold the text (the wordiest), the label and the site (few values; by name
    where a name tells): a guess for a person to check [O]."""
    text = max(columns, key=lambda one: one.words, default=None)
    few = [one for one in columns if one is not text and len(one.values) >= 2]

    def named(stems: Sequence[str], among: Sequence[Column]) -> Column | None:
        return next((one for one in among if any(s in one.name.casefold() for s in stems)), None)

    site = named(SITE_NAMES, few)
    rest = [one for one in few if one is not site]
    label = named(LABEL_NAMES, rest) or min(rest, key=lambda one: len(one.values), default=None)
    return {
        "text": text.name if text else None,
        "label": label.name if label else None,
        "client": site.name if site else None,
    }
