"""What a data set holds, for people to read before a run: rows by site and label, repeats, odd
rows, lengths, and every bad row with its place."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from fedduet.conf.check import ConfigError
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import check_site, load_clients
from fedduet.tasks.data.pools import client_names, label_wordings, partition_of, raw_rows
from fedduet.tasks.data.read import Row

COUNTED = 10_000  # texts whose tokens are counted, evenly from all [O]
FEW_WORDS = 3  # a text with fewer is odd [O]
ODD = {  # kinds of odd rows, each by a pattern; they are told, and stay
    f"fewer than {FEW_WORDS} words": re.compile(rf"\s*(\S+\s*){{0,{FEW_WORDS - 1}}}"),
    "characters lost in decoding": re.compile(r".*(\ufffd|Ã[\x80-\xbf]|â€).*", re.DOTALL),
    "HTML tags or entities": re.compile(
        r".*(</?(p|br|div|span|b|i|a|td|tr|li)\b[^>]*>|&(amp|lt|gt|quot|nbsp|#\d+);).*",
        re.DOTALL | re.IGNORECASE,
    ),
}
_PLACE = re.compile(
    r"^(?P<file>.*): row (?P<row>\d+)(?: \(line (?P<line>\d+)\))?: (?P<what>.*)$", re.DOTALL
)


@dataclass(frozen=True)
class SiteProfile:
    """A site's usable rows by label (before its split is sized), the sizes of its split, and what
    was left out or cut."""

    labels: dict[str, int]
    train: int
    validation: int
    test: int
    repeated: int
    in_test: int
    bad: int
    cut: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts for one model. `limit`: what the model is given at most; `over`: texts
    that are longer, of `counted`."""

    median: int
    ninetieth: int
    longest: int
    limit: int
    over: int
    counted: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A data set. `bad`: what is wrong, then the lines (or rows) by file; `lengths` by model."""

    rows: int
    sites: dict[str, SiteProfile]
    bad: dict[str, dict[str, tuple[int, ...]]]
    odd: dict[str, tuple[int, ...]]
    blank_sites: int
    other_sites: dict[str, int]
    two_labels: int
    two_sites: int
    words: tuple[int, int, int]  # of a text: median, 90 %, most
    lengths: dict[str, Lengths]
    problem: str = ""  # why the rows cannot be split as configured

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a run keeps them in data.json."""
        return asdict(self)


Count = Callable[[Sequence[str]], Sequence[int]]  # tokens of each text


def profile(
    config: TaskConfig,
    seed: int,
    counts: Mapping[str, tuple[Count, int]] | None = None,
    logical_batch: int | None = None,
) -> Profile:
    """The profile of a task's data; `counts`: by limit, how its model counts tokens, and the limit.
    Raises ConfigError for what concerns whole files."""
    told: dict[str, None] = {}  # in order, each once
    names = client_names(config)
    rows = (
        [] if config.source == "world" else raw_rows(config, lambda one: told.update({one: None}))
    )
    problem, loaded, labels = "", {}, label_wordings(config)
    try:
        loaded = load_clients(config, seed, on_bad=lambda one: told.update({one: None}))
        for site, one in loaded.items():
            check_site(config, site, one, labels, logical_batch)
    except ConfigError as failure:
        problem = str(failure)
    if config.source == "world":
        splits = [one.split for one in loaded.values()]
        texts = [r.text for s in splits for part in (s.train, s.validation, s.test) for r in part]
    else:
        texts = [row.text for row in rows]
    sites = {
        site: SiteProfile(
            dict(zip(labels, one.per_label, strict=True)),
            len(one.split.train),
            len(one.split.validation),
            len(one.split.test),
            one.repeated,
            one.in_test,
            one.bad,
            one.cut,
        )
        for site, one in loaded.items()
    }
    by_column = config.source != "world" and partition_of(config) == "column"
    clients = Counter(row.client for row in rows) if by_column else Counter()
    sized = np.array([len(text.split()) for text in texts] or [0])
    return Profile(
        rows=len(texts),
        sites=sites,
        bad=_grouped(told),
        odd=_odd(rows),
        blank_sites=clients.pop("", 0),
        other_sites={name: n for name, n in clients.most_common() if name not in names},
        two_labels=_differing(rows, lambda row: row.label),
        two_sites=_differing(rows, lambda row: row.client) if clients else 0,
        words=_three(sized),
        lengths={name: _lengths(texts, *how) for name, how in (counts or {}).items()},
        problem=problem,
    )


def _three(values: np.ndarray) -> tuple[int, int, int]:
    """Median, 90 % quantile and largest."""
    return tuple(int(one) for one in np.quantile(values, (0.5, 0.9, 1.0)))  # type: ignore[return-value]


def _lengths(texts: Sequence[str], count: Count, limit: int) -> Lengths:
    chosen = texts[:: max(1, -(-len(texts) // COUNTED))]
    found = np.array(count(chosen) if chosen else [0])
    return Lengths(*_three(found), limit, int((found > limit).sum()), len(chosen))


def _differing(rows: Sequence[Row], of: Callable[[Row], str]) -> int:
    """Texts that stand there with two or more different values of `of`."""
    seen: dict[str, str] = {}
    return len({row.text for row in rows if seen.setdefault(row.text, of(row)) != of(row)})


def _odd(rows: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        for kind, pattern in ODD.items():
            if row.text.strip() and pattern.fullmatch(row.text):
                found[kind].append(_line(row.where))
    return {kind: tuple(lines) for kind, lines in found.items()}


def _line(where: str) -> int:
    place = _PLACE.match(f"{where}: ")
    return int(place["line"] or place["row"]) if place else 0


def _grouped(told: Mapping[str, None]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Sentences on bad rows, by what is wrong and file: their lines."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one in told:
        place = _PLACE.match(one)
        what, file = (place["what"], place["file"]) if place else (one, "")
        found[what][file].append(int(place["line"] or place["row"]) if place else 0)
    return {
        what: {file: tuple(sorted(lines)) for file, lines in files.items()}
        for what, files in found.items()
    }


def ranges(lines: Sequence[int]) -> str:
    """Numbers as people write them: 3, 7-9, 12."""
    parts = []
    for _, run in groupby(enumerate(sorted(lines)), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        parts.append(str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}")
    return ", ".join(parts)
