"""Raw label values of a data file, and the wording they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_DECIMAL = re.compile(r"[+-]?[0-9]+\.[0-9]*")


def raw_value(value: Any) -> str:
    """`value` as the string that raw values are compared by.

    White space around it is dropped. Truth values, also when written out, become "true" and
    "false". A number with a decimal point loses trailing zeros, so 1.0 equals 1 but never 10.0 or
    1.5; numbers without one stay as written ("01" is not "1").
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value).strip()
    if text.casefold() in ("true", "false"):
        return text.casefold()
    if _DECIMAL.fullmatch(text):
        text = text.rstrip("0").rstrip(".")
        return "0" if text in ("-0", "+0", "", "-", "+") else text.removeprefix("+")
    return text


def wordings(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The distinct wordings in the order written: label index -> wording. Several raw values may
    share one wording."""
    return tuple(dict.fromkeys(labels.values()))


def indices(labels: Mapping[str, str]) -> dict[str, int]:
    """Raw value (see `raw_value`) -> label index."""
    order = wordings(labels)
    return {raw_value(raw): order.index(wording) for raw, wording in labels.items()}
