"""Tunes a LoRA adapter of a causal LM: on rated texts of its own (policy) or on answers that it
shall give (examples).

peft holds the adapters. TRL's trainers sample and rate by themselves within a step; here the
ratings come from the sites after a round, so the loop is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fedduet.lm.decoding.stepper import forward
from fedduet.lm.models.batch import Encoded, by_length, pad, positions
from fedduet.lm.models.load import trainable
from fedduet.lm.randomness import numpy_generator
from fedduet.lm.training.config import ExamplesConfig, PolicyConfig, TuneReport
from fedduet.lm.training.objectives import (
    dpo_loss,
    group_advantages,
    kl_estimate,
    mean_of_texts,
    policy_gradient_loss,
    preference_pairs,
)
from torch.nn import functional

Told = Callable[[int, int], None]  # steps done, steps in all


def tune_policy(
    model: Any,
    rows: Sequence[Encoded],
    rewards: Sequence[float],
    groups: Sequence[str],
    keep: Sequence[Encoded],
    config: PolicyConfig,
    pad_id: int,
    seed: int,
    on_progress: Told,
) -> TuneReport:
    """Tune the active adapter of the peft `model` in place. `rows`: prompt (the context) and the
    text that was written after it.

    Beside each minibatch some of `keep` cost keep_weight * KL(base || tuned), so that the LLM goes
    on predicting them as it did.

    After each epoch the KL to the base (adapter off) is measured on the rows; above the limit, or
    when a loss is not a number, the adapter gets back the weights it came with.
    """
    pairs = preference_pairs(rewards, groups) if config.objective == "dpo" else []
    advantages = group_advantages(rewards, groups)
    good = [place for place, reward in enumerate(rewards) if reward >= config.threshold]
    units: list[list[int]] = {
        "policy_gradient": (
            [[place] for place in range(len(rows))] if bool(advantages.any()) else []
        ),
        "dpo": [list(pair) for pair in pairs],
        "likelihood": [[place] for place in good],
    }[config.objective]
    if not units:
        return TuneReport(0, math.nan, 0.0, "no_signal")
    old = _answers(model, rows, pad_id)
    with model.disable_adapter():
        base = _answers(model, rows, pad_id)

    kept = _Kept(model, keep, config.keep_weight, config.batch_size, pad_id, seed)

    def loss(chosen: list[int]) -> torch.Tensor:
        return objective(chosen) + kept.loss()

    def objective(chosen: list[int]) -> torch.Tensor:
        places = [place for unit in chosen for place in units[unit]]
        new, mask = answer_logprobs(model, [rows[place] for place in places], pad_id)
        before, untuned = (
            _padded([old[place] for place in places], mask),
            _padded([base[place] for place in places], mask),
        )
        if config.objective == "policy_gradient":
            return policy_gradient_loss(
                new,
                before,
                untuned,
                mask,
                advantages[places].to(new.device),
                config.clip,
                config.kl_weight,
            )
        if config.objective == "likelihood":
            return mean_of_texts(config.kl_weight * kl_estimate(new, untuned) - new, mask)
        sums, base_sums = (new * mask).sum(dim=1), (untuned * mask).sum(dim=1)
        return dpo_loss(sums[0::2], sums[1::2], base_sums[0::2], base_sums[1::2], config.dpo_beta)

    def measure_drift() -> float:
        new = _answers(model, rows, pad_id)
        return float(
            torch.cat([kl_estimate(mine, its) for mine, its in zip(new, base, strict=True)]).mean()
        )

    size = max(1, config.batch_size // 2) if config.objective == "dpo" else config.batch_size
    return _train(
        model,
        len(units),
        size,
        config.epochs,
        config.learning_rate,
        config.kl_limit,
        loss,
        measure_drift,
        seed,
        on_progress,
    )


def tune_examples(
    model: Any,
    rows: Sequence[Encoded],
    weights: Sequence[float],
    keep: Sequence[Encoded],
    config: ExamplesConfig,
    pad_id: int,
    seed: int,
    on_progress: Told,
) -> TuneReport:
    """Tune the active adapter in place on answers (what follows each row's context), a row's loss
    the mean over its answer's tokens.

    Beside each minibatch one of `keep` costs keep_weight * KL(base || tuned) over the full
    vocabulary, mean over its tokens; measured on all of them after each epoch, it is also what
    `kl_limit` bounds.
    """
    if not rows or not sum(weights) > 0:
        return TuneReport(0, math.nan, math.nan, "no_signal")
    counts = torch.tensor(list(weights)) * len(weights) / sum(weights)
    kept = _Kept(model, keep, config.keep_weight, config.batch_size, pad_id, seed)

    def loss(chosen: list[int]) -> torch.Tensor:
        new, mask = answer_logprobs(model, [rows[place] for place in chosen], pad_id)
        each = -(new * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        return (each * counts[chosen].to(each.device)).mean() + kept.loss()

    def measure_drift() -> float:
        if not keep:
            return math.nan
        with torch.no_grad():
            parts = [
                (float(_drift(model, [keep[i] for i in part], pad_id)), len(part))
                for part in by_length([len(k.ids) for k in keep], 16)
            ]
        return sum(value * size for value, size in parts) / len(keep)

    return _train(
        model,
        len(rows),
        config.batch_size,
        config.epochs,
        config.learning_rate,
        config.kl_limit,
        loss,
        measure_drift,
        seed,
        on_progress,
    )


def _train(
    model: Any,
    count: int,
    size: int,
    epochs: int,
    rate: float,
    limit: float,
    loss_of: Callable[[list[int]], torch.Tensor],
    measure_drift: Callable[[], float],
    seed: int,
    on_progress: Told,
) -> TuneReport:
    """AdamW over shuffled minibatches of units 0 to count - 1; undoes all when `measure_drift()`
    passes the limit or a loss is not finite."""
    parameters = trainable(model)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    total, steps, last, kl = epochs * math.ceil(count / size), 0, math.nan, math.nan
    for epoch in range(epochs):
        order = numpy_generator(seed, "epoch", epoch).permutation(count).tolist()
        for start in range(0, count, size):
            loss = loss_of(order[start : start + size])
            if not bool(loss.isfinite()):
                return _undone(parameters, before, steps, math.nan, math.inf)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps, last = steps + 1, float(loss.detach())
            on_progress(steps, total)
        kl = measure_drift()
        if kl > limit:
            return _undone(parameters, before, steps, last, kl)
    return TuneReport(steps, last, kl)


class _Kept:
    """What keeps the LLM as it is: a drawn few of the texts to keep, half a minibatch of them, at
    each call."""

    def __init__(
        self,
        model: Any,
        rows: Sequence[Encoded],
        weight: float,
        batch_size: int,
        pad_id: int,
        seed: int,
    ) -> None:
        self._model, self._rows, self._weight, self._pad_id = model, rows, weight, pad_id
        self._size, self._draw = (
            min(len(rows), max(1, batch_size // 2)),
            numpy_generator(seed, "keep"),
        )

    def loss(self) -> torch.Tensor | float:
        if not self._rows or not self._weight:
            return 0.0
        some = self._draw.choice(len(self._rows), self._size, replace=False)
        return self._weight * _drift(
            self._model, [self._rows[place] for place in some], self._pad_id
        )


def _undone(
    parameters: dict[str, Any], before: dict[str, torch.Tensor], steps: int, loss: float, kl: float
) -> TuneReport:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    return TuneReport(steps, loss, kl, "kl")


def answer_logprobs(
    model: Any, rows: Sequence[Encoded], pad_id: int, width: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, K] log p of the last K tokens of each row, [B, K] 1.0 where they are not context),
    float32; K: the longest answer. With a `width` rows take at least so many tokens, and K is one
    less, whatever their lengths."""
    logits, targets, mask = _logits(model, rows, pad_id, width)
    return (
        -functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        ).view_as(mask),
        mask,
    )


def _logits(
    model: Any, rows: Sequence[Encoded], pad_id: int, width: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """([B, K, V] logits, [B, K] tokens, [B, K] mask). Left padding puts all answers at the end, so
    that only their logits are made."""
    counts = [len(row.ids) - max(1, row.context) for row in rows]
    keep = max(1, width - 1, *counts)
    ids, seen = (
        part.to(model.device)
        for part in pad([row.ids for row in rows], pad_id, left=True, least=width)
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": seen,
        "position_ids": positions(seen),
        "logits_to_keep": keep + 1,
    }
    logits = forward(model, **inputs, use_cache=False).logits[:, -keep - 1 : -1].float()
    places = torch.arange(keep, 0, -1, device=ids.device)[None]
    return (
        logits,
        ids[:, -keep:],
        (places <= torch.tensor(counts, device=ids.device)[:, None]).float(),
    )


@torch.no_grad()
def _answers(
    model: Any, rows: Sequence[Encoded], pad_id: int, size: int = 32
) -> list[torch.Tensor]:
    """For each row the log-probabilities of its own answer's tokens, without pads and context."""
    out: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for part in by_length([len(row.ids) for row in rows], size):
        values, mask = answer_logprobs(model, [rows[place] for place in part], pad_id)
        for place, value, own in zip(part, values, mask, strict=True):
            out[place] = value[own > 0]
    return out


def _padded(answers: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Answers back at their places in `mask` [B, T], 0 elsewhere."""
    out = torch.zeros_like(mask)
    out[mask > 0] = torch.cat(list(answers))
    return out


def _drift(model: Any, rows: Sequence[Encoded], pad_id: int) -> torch.Tensor:
    """KL(base || tuned), full vocabulary, mean over each row's tokens and then over rows."""
    with torch.no_grad(), model.disable_adapter():
        base = functional.log_softmax(_logits(model, rows, pad_id)[0], dim=-1)
    logits, _, mask = _logits(model, rows, pad_id)
    tuned = functional.log_softmax(logits, dim=-1)
    return mean_of_texts((base.exp() * (base - tuned)).sum(dim=-1), mask)
