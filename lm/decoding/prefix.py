"""What prompts have in common at their beginnings, so that it is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# tokens that sharing must save where it reads a row of its own [O]
WORTH = 64


@dataclass(frozen=True)
class Read:
    """A prompt that has been read: its tokens, and its keys and values [layers, 2, 1, heads,
    tokens, head size]."""

    tokens: Sequence[int]
    cache: torch.Tensor


def shared(prompts: Sequence[Sequence[int]], before: Read | None) -> tuple[int, int]:
    """(how many first tokens of all `prompts` to read once, how many of these `before` has read);
    0 where that does not pay. The longest prompt keeps a token of its own."""
    low, high = min(prompts), max(prompts)  # in their order, all others lie between
    length = min(common(low, high), max(map(len, prompts)) - 1)
    known = min(length, common(low, before.tokens)) if before else 0
    if len(prompts) == 1:
        length = known
    saved = len(prompts) * length - (length - known)
    return (length, known) if saved >= WORTH or known == length else (0, 0)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens two prompts share."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
