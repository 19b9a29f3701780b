"""Splits text of any script into comparable units: words, or single characters where words are not
spaced."""

import re
import unicodedata
from collections.abc import Callable, Sequence

# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, bopomofo, CJK
# ideographs.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def units(text: str) -> list[str]:
    """Units of `text` in order, case folded and in compatibility form (NFKC), so that case, white
    space, full-width forms and punctuation make no difference. A text of punctuation or symbols
    only gives its non-space characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _UNIT.findall(folded) or [character for character in folded if not character.isspace()]


def shingles(parts: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All runs of `length` neighbouring parts, in order, repeats included; a shorter sequence is
    one run (none if empty)."""
    if len(parts) <= length:
        return [tuple(parts)] if parts else []
    return list(zip(*(parts[start:] for start in range(length)), strict=False))


def cut_to_tokens(text: str, count_tokens: Callable[[str], int], budget: int) -> str:
    """The longest prefix of `text`, ended at white space where there is some, with at most `budget`
    tokens ("" if none)."""
    if count_tokens(text) <= budget:
        return text
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    if len(ends) < 4 or count_tokens(text[: ends[0]]) > budget:  # no spaces to cut at
        ends = list(range(1, len(text) + 1))
    # the first `low` ends fit; counts grow with length up to a token or so at the seam
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high)
            if count_tokens(text[: ends[middle - 1]]) <= budget
            else (low, middle - 1)
        )
    return text[: ends[low - 1]] if low else ""
