"""Trains a causal LM to go on after prompts: the private SLM of G-Boost, and any other model that
answers in text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fedduet.lm.models.batch import Encoded, encode_document, endless_by_length, longest
from fedduet.lm.models.load import attach_lora, trainable
from fedduet.lm.progress import report
from fedduet.lm.randomness import derive, numpy_generator
from fedduet.lm.training.classify import planned_training_steps, schedule
from fedduet.lm.training.config import SLMConfig
from fedduet.lm.training.tune import answer_logprobs


def encode_pairs(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], max_tokens: int
) -> list[Encoded]:
    """(prompt, answer) as training rows with an end token; rows whose prompt alone fills
    `max_tokens` teach nothing and are left out."""
    rows = [
        encode_document(tokenizer, prompt, answer, min(max_tokens, longest(tokenizer)))
        for prompt, answer in pairs
    ]
    return [row for row in rows if row.context < len(row.ids)]


def train_causal(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    config: SLMConfig,
    seed: int = 0,
    phase: str = "train",
    padded: bool = False,
) -> tuple[Any, int]:
    """`model` (or a LoRA of it) trained on the answers of (prompt, answer) pairs, in eval mode, and
    the steps taken (`planned_training_steps`; its last checkpoint).

    Every step takes the mean over the answers' tokens of `config.batch_size` rows; AdamW, linear
    warm-up and decay. Steps are planned for all pairs, also those that do not fit; `padded` rows
    all take `config.max_tokens`. Raises ValueError when no pair fits `config.max_tokens`.
    """
    rows = encode_pairs(tokenizer, pairs, config.max_tokens)
    if not rows:
        raise ValueError(
            f"no question of {len(pairs)} leaves room for its answer in {config.max_tokens} tokens;"
            " raise slm.max_tokens"
        )
    if config.method == "lora":
        model = attach_lora(model, config.rank, config.alpha, seed=derive(seed, "adapter"))
    else:
        model.requires_grad_(True)
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps = planned_training_steps(config, len(pairs))
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, steps, config.warmup)
    )
    batches = endless_by_length(
        [len(row.ids) for row in rows], config.batch_size, numpy_generator(seed, "batches")
    )
    width = min(config.max_tokens, longest(tokenizer)) if padded else 0
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "dropout"))
        for step in range(steps):
            logprobs, mask = answer_logprobs(
                model, [rows[place] for place in next(batches)], tokenizer.pad_token_id, width
            )
            (-(logprobs * mask).sum() / mask.sum()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rates.step()
            report(phase, step + 1, steps, "steps")
    return model.eval(), steps
