"""The rule filter for generated text: strips junk and drops what is too short, unfinished,
repetitive, or said before.

Rules and limits are our choice. They only look at the text, so what they do to samples of a DP
generator is post-processing.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedduet.lm.text.words import shingles, units

REASONS = ("too_short", "unfinished", "repetitive", "duplicate")

_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u061c\u200b\u200e\u200f\u2060\ufeff\ufffd"))
_INVISIBLE |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])  # of direction
# tags: ASCII that nobody sees and a model may read
_INVISIBLE |= dict.fromkeys(range(0xE0000, 0xE0080))
_SPECIAL_TOKEN = re.compile(
    r"[<\uff1c][|\uff5c][^|\uff5c<>\s]{1,40}[|\uff5c][>\uff1e]|</?s>|<(?:pad|unk|eos|bos)>|\[(?:PAD|UNK|CLS|SEP|MASK)\]|<br"
    r" ?/?>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?think(?:ing)?>"  # of chat templates
)
_PUNCTUATION_RUN = re.compile(r"([^\w\s]|_)(?:[^\S\n]*\1){3,}")
_SENTENCE_END = re.compile(r"(?:[.!?…؟।۔]+[\"'”’»)\]]*(?=\s|$)|[。！？]+[”’」』）]*)")
_QUOTES = {'"': '"', "“": "”", "«": "»", "「": "」", "'": "'", "‘": "’", "`": "`"}


@dataclass(frozen=True)
class Rules:
    """`min_tokens`: shorter texts are dropped. `unfinished`: what happens to a text that did not
    end by itself: "cut" it back to its last sentence end (dropped when there is none or too little
    is left), "drop" it, or "keep" it as it is. A text is repetitive when one 3-gram fills more than
    `max_share` of it (at least three times), or when fewer than `min_distinct` of its 3-grams (of
    at least eight) differ."""

    min_tokens: int = 5
    unfinished: Literal["cut", "drop", "keep"] = "cut"
    max_share: float = 0.25
    min_distinct: float = 0.6


@dataclass(frozen=True)
class Filtered:
    """`kept`: (index of the input text, cleaned text), ascending. `dropped`: texts per reason of
    REASONS; with `kept` they add up to the input. `cut`: texts among the kept that were cut back to
    a sentence end."""

    kept: tuple[tuple[int, str], ...]
    dropped: Mapping[str, int]
    cut: int = 0


def filter_texts(
    texts: Sequence[str],
    count_tokens: Callable[[str], int],
    rules: Rules | None = None,
    finished: Sequence[bool] | None = None,
    heads: Sequence[str] = (),
) -> Filtered:
    """The texts that pass `rules`, cleaned. `finished[i]`: text i ended by itself, at EOS or a stop
    string (default: all). `heads`: words of the control code whose leftovers are removed, see
    `control_heads`. Of texts that are equal but for case and white space the first stays."""
    rules = rules or Rules()
    finished = [True] * len(texts) if finished is None else finished
    kept: list[tuple[int, str]] = []
    dropped = dict.fromkeys(REASONS, 0)
    seen: set[str] = set()
    cut = 0
    for index, (raw, ended) in enumerate(zip(texts, finished, strict=True)):
        text = clean(raw, heads)
        if not ended and rules.unfinished != "keep":
            whole = last_sentence_end(text) if rules.unfinished == "cut" else ""
            if not whole or count_tokens(whole) < rules.min_tokens:
                dropped["unfinished"] += 1
                continue
            shortened, text = len(whole) < len(text), whole
        else:
            shortened = False
        key = " ".join(text.casefold().split())
        if not text or count_tokens(text) < rules.min_tokens:
            dropped["too_short"] += 1
        elif is_repetitive(text, rules.max_share, rules.min_distinct):
            dropped["repetitive"] += 1
        elif key in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            kept.append((index, text))
            cut += shortened
    return Filtered(tuple(kept), dropped, cut)


# -- one text --------------------------------------------------------------------------------------


def clean(text: str, heads: Sequence[str] = ()) -> str:
    """`text` without control and invisible characters, special tokens, leftovers of the control
    code, runs of more than three equal punctuation marks, quotes around the whole, and superfluous
    white space (no blank lines remain)."""
    text = _without_heads(plain(text.replace("\r\n", "\n").replace("\t", " ")), heads)
    text = _PUNCTUATION_RUN.sub(r"\1\1\1", text)
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()
    return _without_outer_quotes(text)


def plain(text: str) -> str:
    """`text` without invisible and control characters (line breaks stay) and without special tokens
    of tokenizers and chat templates, each a space: what is left is read as text by any model. No
    removal makes a new special token."""
    text = "".join(
        c
        for c in text.translate(_INVISIBLE)
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs")
    )
    return _SPECIAL_TOKEN.sub(" ", text)


def control_heads(control_code: str) -> tuple[str, ...]:
    """The literal parts of a control code with at least two letters, e.g. ("Product:", "Rating:",
    "Review:"), in order."""
    literals = (literal.strip() for literal in re.split(r"\{\w+\}", control_code))
    return tuple(dict.fromkeys(part for part in literals if sum(map(str.isalpha, part)) >= 2))


def last_sentence_end(text: str) -> str:
    """`text` up to and including its last sentence mark (and closing quotes after it); "" when it
    has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def is_repetitive(text: str, max_share: float, min_distinct: float) -> bool:
    """True when the text says the same three words (or characters, in unspaced scripts) over and
    over, see `Rules`."""
    parts = units(text)
    runs = shingles(parts, 3)
    if not runs:
        return False
    most = max(Counter(runs).values())
    if most >= 3 and 3 * most > max_share * len(parts):
        return True
    return len(runs) >= 8 and len(set(runs)) < min_distinct * len(runs)


def _without_heads(text: str, heads: Sequence[str]) -> str:
    """Drops the lines of a control code the text starts with, and everything from the next control
    code on."""
    if not heads:
        return text
    lines = text.strip().split("\n")
    start = 0
    while start < len(lines):
        head = _head_of(lines[start], heads)
        if head is None:
            break
        if head == heads[-1]:  # the head that the text itself follows
            lines[start] = lines[start].strip()[len(head) :]
            break
        start += 1
    body = lines[start : start + 1]
    for line in lines[start + 1 :]:
        if _head_of(line, heads) is not None:
            break
        body.append(line)
    return "\n".join(body)


def _head_of(line: str, heads: Sequence[str]) -> str | None:
    line = line.strip().casefold()
    return next((head for head in heads if line.startswith(head.casefold())), None)


def _without_outer_quotes(text: str) -> str:
    """Strips quotes around the whole text, and a lone opening or closing double quote (an
    apostrophe is never lone)."""
    while len(text) >= 2 and _QUOTES.get(text[0]) == text[-1]:
        inner = text[1:-1]
        if text[0] not in "'`‘" and (text[0] in inner or text[-1] in inner):
            break
        text = inner.strip()
    if text.count('"') % 2:
        text = text[1:] if text.startswith('"') else text[:-1] if text.endswith('"') else text
    for opening, closing in (("“", "”"), ("«", "»"), ("「", "」")):
        if text.startswith(opening) and closing not in text:
            text = text[1:]
        if text.endswith(closing) and opening not in text:
            text = text[:-1]
    return text.strip()
