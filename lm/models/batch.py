"""Turns texts into token ids once, and token ids into padded batches of rows of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Encoded:
    """One training row of a causal LM: its token ids, of which the first `context` are given, not
    learned."""

    ids: tuple[int, ...]
    context: int = 0


def encode(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text with the tokenizer's own special tokens, cut to `max_tokens` (special
    tokens kept)."""
    if not texts:
        return []
    limit = min(max_tokens, longest(tokenizer))
    return tokenizer(list(texts), truncation=True, max_length=limit, padding=False, verbose=False)[
        "input_ids"
    ]


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids to continue from: trailing spaces are dropped (the next word brings its own) and so
    is an added end token."""
    return _without_end(tokenizer, tokenizer(prompt.rstrip(), verbose=False)["input_ids"])


def encode_document(tokenizer: Any, control: str, text: str, max_tokens: int) -> Encoded:
    """`control + text + EOS` as one training row, cut to `max_tokens`.

    A cut row has no EOS: the text did not end there [O]. The whole string is tokenised at once, as
    in pre-training; `context` counts its tokens that are the control code's, so that
    `encode_prompt(control)` is exactly what the model sees before the text.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end token, so a generator could never stop; load it with"
            " generates=True"
        )
    whole = _without_end(tokenizer, tokenizer(control + text, verbose=False)["input_ids"])
    prompt = encode_prompt(tokenizer, control) if control else []
    context = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b),
        min(len(prompt), len(whole)),
    )
    return Encoded(tuple([*whole, tokenizer.eos_token_id][:max_tokens]), context)


def longest(tokenizer: Any) -> int:
    """The longest input the tokenizer says its model takes (tokens); absurd values mean it does not
    say."""
    return int(min(tokenizer.model_max_length, 1_000_000))


def width_multiple(model: Any) -> int:
    """What the width of training batches is rounded up to: oneDNN makes and keeps code for each
    shape, and this gives it few [O].

    1 where the model's last position would be passed.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    return 1 if positions % 8 else 8


def pad(
    rows: Sequence[Sequence[int]], value: int, left: bool = False, multiple: int = 1, least: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both int64 [B, T], T the longest row (or `least`) rounded up to a `multiple`;
    `mask` is 1 on real tokens.

    Pads stand right unless `left`.
    """
    width = -(-max([least, *map(len, rows)]) // multiple) * multiple
    ids = np.full((len(rows), width), value, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Position ids int64 [B, T] under `mask` [B, T]: 0 at each row's first real token (and at the
    pads left of it)."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


def by_length(
    lengths: Sequence[int], size: int | None, tokens: int | None = None
) -> list[list[int]]:
    """Row numbers, longest first, in batches: the cheapest order when order does not matter
    (inference).

    A batch has at most `size` rows and at most `tokens` cells (rows x the longest row); None is no
    limit, and one row always fits.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rows = len(batches[-1]) if batches else 0
        if not rows or rows == size or (tokens and lengths[batches[-1][0]] * (rows + 1) > tokens):
            batches.append([])
        batches[-1].append(i)
    return batches


def endless_by_length(
    lengths: Sequence[int], size: int, draw: np.random.Generator, window: int = 4
) -> Iterator[list[int]]:
    """Training batches for ever, each of exactly `size` row numbers; every pass over the rows is
    shuffled anew.

    Stretches of `window` batches are sorted by length and their batches shuffled: little padding,
    and still near a shuffle. Lengths are blurred by a quarter for the sorting, so that a small set
    does not fall into the same batches in every pass [O].
    """
    if not lengths:
        raise ValueError("no rows to draw batches from")
    known = np.array(lengths)
    waiting: list[int] = []
    while True:
        while len(waiting) < size * window:
            waiting += draw.permutation(len(known)).tolist()
        part, waiting = np.array(waiting[: size * window]), waiting[size * window :]
        part = part[np.argsort(known[part] * np.exp(0.25 * draw.standard_normal(len(part))))]
        for i in draw.permutation(window):
            yield part[i * size : (i + 1) * size].tolist()


def _without_end(tokenizer: Any, ids: list[int]) -> list[int]:
    while ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1:
        ids = ids[:-1]
    return list(ids)
