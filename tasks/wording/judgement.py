"""Reads which members of a group an LLM wants to keep; an unreadable answer is told from one that
keeps none."""

from __future__ import annotations

import re
from typing import Any

from fedduet.tasks.wording.parse import json_values, unwrapped


def parse_judgement(answer: str, n: int) -> list[int] | None:
    """Which of `n` members an answer to `judge_prompt` keeps, sorted; None when the answer cannot
    be read.

    Reads `[0, 2]`, an open list gone on with (`0, 2]`), JSON objects with keep or drop, one verdict
    a line (`0: keep`), and words (`keep: 0 and 2`, `none`, `all`). Numbers that no member has are
    left out; an answer with only such numbers cannot be read.
    """
    answer = unwrapped(answer).casefold()
    if (after := re.search(r"(?<!not )(?<!n't )\bkeep\w*[\"']?\W{0,3}(?=\[)", answer)) is not None:
        kept = next(
            (
                kept
                for value in json_values(answer[after.end() :])
                if (kept := _judged(value, n)) is not None
            ),
            None,
        )
        if kept is not None:
            return kept
    for value in json_values(answer):
        if (kept := _judged(value, n)) is not None:
            refused = isinstance(value, list) and re.search(
                r"\b(drop|remove|discard|exclude|not keep|n't keep)\b[^\[]{0,60}\[", answer
            )
            return [number for number in range(n) if number not in kept] if refused else kept
    verdicts = re.findall(
        r"^[^\w\n]*([0-9]{1,6})[^\w\n]+(keep|kept|yes|drop|dropped|no|discard|remove)\b",
        answer,
        re.MULTILINE,
    )
    if verdicts:
        return _members(
            [int(number) for number, verdict in verdicts if verdict in ("keep", "kept", "yes")],
            n,
            named=True,
        )
    listed = r"((?<![0-9])#?[0-9]{1,6}(?:(?:\s|,|;|&|and)+#?[0-9]{1,6})*)(?![0-9])"
    if found := re.findall(rf"(?<!not )(?<!n't )\bkeep\w*\b[^0-9\n\[\].]{{0,30}}?{listed}", answer):
        return _members([int(number) for number in re.findall("[0-9]+", found[-1])], n)
    # a bare list on the first line, or an open list that the answer closes
    if bare := re.match(rf"\[?\s*{listed}\s*(?:\]|\.?\s*(?:\n|$))", answer):
        return _members([int(number) for number in re.findall("[0-9]+", bare[1])], n)
    if re.match(r"\]|\W*(keep\W+)?(none|nothing)\b", answer):
        return []
    if re.match(r"\W*(keep\W+)?(all|everything)\b", answer):
        return list(range(n))
    return None


def _judged(value: Any, n: int) -> list[int] | None:
    if isinstance(value, list):
        if value and all(isinstance(item, bool) for item in value):
            return (
                [number for number, item in enumerate(value) if item] if len(value) == n else None
            )
        numbers = [_number(item) for item in value]
        return (
            None
            if None in numbers
            else _members([number for number in numbers if number is not None], n)
        )
    if not isinstance(value, dict) or not value:
        return None
    for key, item in value.items():
        if key.startswith(("keep", "kept", "selected")):
            single = _number(item)
            return _judged([item] if single is not None else item, n)
    for key, item in value.items():
        if key.startswith(("drop", "remove", "discard")) and isinstance(item, list):
            dropped = _judged(item, n)
            return (
                None
                if dropped is None
                else [number for number in range(n) if number not in dropped]
            )
    if all(re.fullmatch("[0-9]{1,6}", key) for key in value):
        kept = [
            int(key)
            for key, item in value.items()
            if item is True or item in ("keep", "yes", "true")
        ]
        return _members(kept, n, named=True)
    return next(
        (
            kept
            for item in value.values()
            if isinstance(item, list) and (kept := _judged(item, n)) is not None
        ),
        None,
    )


def _number(item: object) -> int | None:
    if isinstance(item, bool):
        return None
    if isinstance(item, (int, float)):
        return int(item) if item == item and abs(item) < 1e9 and item == int(item) else None
    return (
        int(item) if isinstance(item, str) and re.fullmatch(r"-?[0-9]{1,6}", item.strip()) else None
    )


def _members(numbers: list[int], n: int, named: bool = False) -> list[int] | None:
    """`named`: the numbers that were not kept were named too, so keeping none is an answer."""
    kept = sorted({number for number in numbers if 0 <= number < n})
    return None if numbers and not kept and not named else kept
