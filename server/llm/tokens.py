"""Text to token ids and back, and rows of token ids to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def encode(tokenizer: Any, text: str) -> list[int]:
    """A prompt's tokens: with the token that starts a text, if the tokenizer adds one, but never the one that ends it."""
    tokens = tokenizer(text, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if len(tokens) > 1 and tokens[-1] == end and not text.endswith(tokenizer.eos_token):
        tokens = tokens[:-1]
    return tokens


def start_tokens(tokenizer: Any) -> list[int]:
    """What stands before a text in training: the start token, or the end token of the text before; empty where there is neither."""
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [token for token in tokens if token is not None][:1]


def decoded(tokenizer: Any, tokens: list[int]) -> str:
    """The text of `tokens` without special tokens; half a character at an end becomes U+FFFD."""
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def decoded_after(tokenizer: Any, anchor: list[int], new: list[int]) -> str:
    """Text of `new` as it follows the tokens `anchor`: some tokenizers drop the space at the start of what they decode."""
    head, whole = decoded(tokenizer, anchor), decoded(tokenizer, anchor + new)
    return whole[len(head) :] if whole.startswith(head) else decoded(tokenizer, new)


def left_padded(rows: list[list[int]], room: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [B, T], attention mask [B, T + room] (1 over the room), position ids [B, T]. Padding is masked; its id is 0."""
    width = max(map(len, rows))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) + room) for row in rows])
    return tokens, mask, (mask[:, :width].cumsum(dim=1) - 1).clamp_min(0)


def batches(rows: list[Any], length: Callable[[Any], int], limit: int) -> Iterator[list[Any]]:
    """The rows, longest first, in batches of at most `limit` cells (rows x the longest row), at least one row each."""
    batch: list[Any] = []
    for row in sorted(rows, key=length, reverse=True):
        if batch and length(batch[0]) * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
