"""Samples texts from a causal LM, in large batches, one random stream each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fedduet.lm.decoding.decode import Answer, Ask, decode
from fedduet.lm.decoding.stepper import stepper
from fedduet.lm.models.batch import encode_prompt, longest
from fedduet.lm.models.precision import use_bf16
from fedduet.lm.progress import report
from fedduet.lm.randomness import derive


@dataclass(frozen=True)
class SampledText:
    """What a prompt was continued with (the prompt is not part of it), and whether the model ended
    it itself with its end token."""

    text: str
    finished: bool
    tokens: int = 0  # new tokens


def sample_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 0.9,
    seed: int = 0,
    batch_size: int = 64,
    precision: str = "auto",
    phase: str = "sample",
) -> list[SampledText]:
    """One continuation for each prompt, in their order; the i-th draws from the stream (seed,
    "sample", i).

    LoRA weights are folded into a copy first. Trailing spaces of prompts are dropped and leading
    ones of texts too, see `fedduet.lm.models.batch.encode_prompt`. Raises ValueError when a prompt
    leaves no room for `max_new_tokens` in the model's context, and RuntimeError when the model's
    logits are not numbers or the device has too little memory for one text.
    """
    device = str(next(model.parameters()).device)
    run = stepper(model, torch.bfloat16 if use_bf16(precision, device) else None, precision)
    encoded = {prompt: tuple(encode_prompt(tokenizer, prompt)) for prompt in set(prompts)}
    context = min(
        longest(tokenizer),
        getattr(model.config, "max_position_embeddings", None) or longest(tokenizer),
    )
    if (most := max((len(ids) for ids in encoded.values()), default=0)) + max_new_tokens > context:
        raise ValueError(
            f"a prompt has {most} tokens and max_new_tokens is {max_new_tokens}; together at most"
            f" {context} fit the model"
        )
    asks = [
        Ask(
            encoded[prompt],
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            derive(seed, "sample", number),
        )
        for number, prompt in enumerate(prompts)
    ]
    ready = 0

    def done(number: int, answer: Answer) -> None:
        nonlocal ready
        ready += 1
        report(phase, ready, len(asks), "texts")

    answers = decode(run, asks, end_tokens(model, tokenizer), batch_size, done=done)
    if failed := [answer.error for answer in answers if answer.error]:
        raise RuntimeError(f"{len(failed)} of {len(asks)} texts could not be sampled: {failed[0]}")
    texts = [
        tokenizer.decode(list(answer.tokens), skip_special_tokens=True).strip()
        for answer in answers
    ]
    return [
        SampledText(text, answer.finish == "end", len(answer.tokens))
        for text, answer in zip(texts, answers, strict=True)
    ]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end a text: the tokenizer's end token and those of the model's generation
    settings."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset(
        {*(named if isinstance(named, Iterable) else [named]), tokenizer.eos_token_id} - {None}
    )
