"""Text to token ids and back."""

from __future__ import annotations

from typing import Any


def encode(tokenizer: Any, text: str) -> list[int]:
    """A prompt's tokens: with the token that starts a text, if the tokenizer adds one, but never
    the one that ends it."""
    tokens = tokenizer(text, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    if len(tokens) > 1 and tokens[-1] == end and not text.endswith(tokenizer.eos_token):
        tokens = tokens[:-1]
    return tokens


def start_tokens(tokenizer: Any) -> list[int]:
    """What stands before a text in training: the start token, or the end token of the text before;
    empty where there is neither."""
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    return [token for token in tokens if token is not None][:1]


def decoded(tokenizer: Any, tokens: list[int]) -> str:
    """The text of `tokens` without special tokens; half a character at an end becomes U+FFFD."""
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def decoded_after(tokenizer: Any, anchor: list[int], new: list[int]) -> str:
    """Text of `new` as it follows the tokens `anchor`: some tokenizers drop the space at the start
    of what they decode."""
    head, whole = decoded(tokenizer, anchor), decoded(tokenizer, anchor + new)
    return whole[len(head) :] if whole.startswith(head) else decoded(tokenizer, new)
