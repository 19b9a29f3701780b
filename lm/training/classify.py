"""Trains a small classifier on private and generated texts together, and asks it for class
probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fedduet.lm.models.batch import (
    by_length,
    encode,
    endless_by_length,
    longest,
    pad,
    width_multiple,
)
from fedduet.lm.models.load import attach_lora, eager_attention, trainable
from fedduet.lm.models.precision import use_bf16
from fedduet.lm.progress import report
from fedduet.lm.randomness import derive, numpy_generator
from fedduet.lm.training.config import VALIDATES, SLMConfig
from torch.nn import functional


@dataclass(frozen=True)
class Examples:
    """Texts with label indices; optionally a weight and a row of class probabilities each (empty:
    all 1; hard labels).

    `wire.LabelledTexts` has the same fields and may be passed in its place.
    """

    texts: Sequence[str] = ()
    labels: Sequence[int] = ()
    weights: Sequence[float] = ()
    soft_labels: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, kw_only=True)
class ClassifierReport:
    """What ran. Passes: how often a row of the set was seen on the mean. `best_step`: of the kept
    checkpoint. `validation` (step of the last stage, accuracy) is of private texts and stays at
    the site."""

    steps: int
    private_passes: float
    generated_passes: float
    best_step: int
    validation: tuple[tuple[int, float], ...]
    seconds: float


@dataclass(frozen=True)
class _Set:
    ids: list[list[int]]
    targets: torch.Tensor  # [n, K] class probabilities
    weights: torch.Tensor  # [n], mean 1

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]


def prepare_classifier(model: Any, config: SLMConfig, seed: int = 0) -> Any:
    """`model` with what `config.method` trains made trainable: every weight, or LoRA adapters and
    the head."""
    if config.method == "lora":
        return attach_lora(model, config.rank, config.alpha, seed=seed)
    return model.requires_grad_(True)


def planned_training_steps(config: SLMConfig, rows: int, sites: int = 1) -> int:
    """Steps of a training on so many private rows (or, without any, generated ones): `epochs`
    passes over them, within [min_steps, max_steps].

    Generated texts beside private rows change nothing: every method sees a private row equally
    often, whatever comes with it. `rows` of several `sites` together (the pooled bound) take as
    many steps as these sites' own trainings in all, so that a row is seen equally often there too.
    [O]
    """
    each = math.ceil(config.epochs * rows / sites / config.batch_size)
    return sites * min(max(each, config.min_steps, 1), config.max_steps)


def train_classifier(
    model: Any,
    tokenizer: Any,
    private: Examples,
    generated: Examples,
    config: SLMConfig,
    weight: float = 1.0,
    order: str = "together",
    validation: Examples | None = None,
    seed: int = 0,
    phase: str = "train",
    private_rows: int | None = None,
    padded: bool = False,
    steps: int | None = None,
) -> ClassifierReport:
    """Trains the trainable parameters of `model` in place and leaves the selected checkpoint in it,
    in eval mode.

    "together": L = CE(private) + weight * CE(generated), each term the MEAN over its own set, so
    that at weight 1 both sets count the same whatever their sizes: every step draws batch_size
    rows of each and takes the mean of each part. A row's own weight w_i enters as w_i / mean(w), so
    the second term is sum(w_i CE_i) / sum(w_i). Soft labels replace the hard one in CE.
    "generated_first": a training on the generated set, then one on the private set, each with its
    own schedule and as many steps; `weight` has no part. `steps`: of a stage, else what
    `planned_training_steps` says. AdamW, linear warm-up and decay. "accuracy" keeps the trainable
    weights that were right most often on `validation`, of equals the last. Two calls with one seed
    give the same weights on one machine. Where time would tell of private rows, steps and passes
    are those of the public number `private_rows` of them, and `padded` rows all take
    `config.max_tokens`. Raises ValueError for an empty training, unfit rows, or too few to validate
    by.
    """
    if order not in ("together", "generated_first"):
        raise ValueError(f"order: found {order!r}; allowed: together, generated_first")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight: found {weight}; allowed: a finite number of 0 or more")
    began = time.monotonic()
    classes = model.config.num_labels
    sets = {
        name: _prepared(tokenizer, rows, config, classes, name)
        for name, rows in (("private", private), ("generated", generated))
    }
    if weight == 0 and order == "together":
        sets["generated"] = None
    held = None
    if config.select == "accuracy":
        held = _prepared(tokenizer, validation or Examples(), config, classes, "validation")
        if held is None or len(held.ids) < VALIDATES:
            raise ValueError(
                f"slm.select: accuracy needs {VALIDATES} validation rows and there are fewer;"
                " allowed here: last"
            )
    width = public_width(tokenizer, config) if padded else 0
    parts = [(sets["private"], 1.0), (sets["generated"], weight if sets["private"] else 1.0)]
    stages = (
        [parts] if order == "together" else [[(sets["generated"], 1.0)], [(sets["private"], 1.0)]]
    )
    stages = [stage for stage in ([part for part in stage if part[0]] for stage in stages) if stage]
    if not stages:
        raise ValueError("found no private and no generated texts to train on")
    counts = {name: len(part.ids) for name, part in sets.items() if part}
    if sets["private"] and private_rows is not None:
        counts["private"] = private_rows
    each = steps or planned_training_steps(config, counts.get("private") or counts["generated"])
    total = each * len(stages)
    keeper = _Keeper(model, held, config, tokenizer.pad_token_id, width)
    done = 0
    with torch.random.fork_rng(devices=[]), eager_attention(model):
        torch.manual_seed(derive(seed, "dropout"))
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            draws = [
                endless_by_length(
                    part.lengths, config.batch_size, numpy_generator(seed, "batches", number, i)
                )
                for i, (part, _) in enumerate(stage)
            ]

            def on_progress(step: int, before: int = done) -> None:
                report(phase, before + step, total, "steps")

            _run_stage(
                model,
                tokenizer.pad_token_id,
                stage,
                draws,
                each,
                config,
                width,
                keeper if last else None,
                on_progress,
            )
            done += each
    best = keeper.restore(each) + total - each
    model.eval()
    seen = config.batch_size * each
    passes = {name: seen / counts[name] if name in counts else 0.0 for name in sets}
    return ClassifierReport(
        steps=total,
        private_passes=passes["private"],
        generated_passes=passes["generated"],
        best_step=best,
        validation=tuple(keeper.accuracies),
        seconds=time.monotonic() - began,
    )


def _run_stage(
    model: Any,
    pad_id: int,
    parts: list[tuple[_Set, float]],
    draws: list[Iterator[list[int]]],
    steps: int,
    config: SLMConfig,
    width: int,
    keeper: _Keeper | None,
    on_progress: Callable[[int], None],
) -> None:
    optimizer = torch.optim.AdamW(
        _groups(model, config), weight_decay=config.weight_decay, fused=True
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    checks = {math.ceil(steps * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    for step in range(steps):
        model.train()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps, config.warmup)
        for (part, factor), batches in zip(parts, draws, strict=True):
            chosen = next(batches)
            losses = _losses(model, part, chosen, pad_id, config, width)
            (factor * (losses * part.weights[chosen]).mean()).backward()
        torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], 1.0
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        on_progress(step + 1)
        if keeper and step + 1 in checks:
            keeper.measure(step + 1)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the highest learning rate in this step (0-based): up linearly over the warm-up, then
    down to almost 0."""
    rising = max(1, round(warmup * steps))
    return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising + 1)


def _groups(model: Any, config: SLMConfig) -> list[dict[str, Any]]:
    """The head's parameters with their own learning rate, and all others."""
    named = trainable(model)
    head = {
        name
        for name in named
        if any(part in ("classifier", "score", "classification_head") for part in name.split("."))
    }
    groups = [
        ([p for n, p in named.items() if (n in head) == is_head], config.learning_rate * factor)
        for is_head, factor in ((False, 1.0), (True, config.head_factor))
    ]
    if not named:
        raise ValueError("the model has no trainable parameters; call prepare_classifier first")
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def public_width(tokenizer: Any, config: SLMConfig) -> int:
    """What every row is as long as where lengths are not to be seen (tokens)."""
    return min(config.max_tokens, longest(tokenizer))


def _losses(
    model: Any, rows: _Set, chosen: list[int], pad_id: int, config: SLMConfig, width: int = 0
) -> torch.Tensor:
    """[b] cross-entropies of the chosen rows against their class probabilities."""
    logits = _logits(model, [rows.ids[i] for i in chosen], pad_id, config.precision, width)
    return -(rows.targets[chosen] * functional.log_softmax(logits, dim=-1)).sum(dim=-1)


def _logits(
    model: Any, rows: list[list[int]], pad_id: int, precision: str, width: int = 0
) -> torch.Tensor:
    ids, mask = pad(rows, pad_id, multiple=width_multiple(model), least=width)
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(precision, device.type)):
        return (
            model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().to("cpu")
        )


def _prepared(
    tokenizer: Any, rows: Examples, config: SLMConfig, classes: int, name: str
) -> _Set | None:
    count = len(rows.texts)
    for field, values in (
        ("labels", rows.labels),
        ("weights", rows.weights),
        ("soft_labels", rows.soft_labels),
    ):
        if len(values) != count and (len(values) or field == "labels"):
            raise ValueError(f"{name}: found {count} texts but {len(values)} {field}")
    for i, label in enumerate(rows.labels):
        if not 0 <= label < classes:
            raise ValueError(f"{name}: row {i} has label {label}; allowed: 0 to {classes - 1}")
    if not count:
        return None
    weights = torch.tensor(list(rows.weights) or [1.0] * count, dtype=torch.float32)
    if not (
        bool((weights >= 0).all()) and bool(weights.isfinite().all()) and float(weights.sum()) > 0
    ):
        raise ValueError(f"{name}: weights must be finite, 0 or more, and not all 0")
    targets = functional.one_hot(torch.tensor(list(rows.labels)), classes).float()
    if len(rows.soft_labels):
        targets = torch.tensor([list(row) for row in rows.soft_labels], dtype=torch.float32)
        if (
            targets.shape != (count, classes)
            or bool((targets < 0).any())
            or bool(((targets.sum(dim=1) - 1).abs() > 1e-3).any())
        ):
            raise ValueError(
                f"{name}: every soft label must be {classes} probabilities that add up to 1"
            )
    return _Set(encode(tokenizer, rows.texts, config.max_tokens), targets, weights / weights.mean())


class _Keeper:
    """Holds the trainable weights that had the highest validation accuracy."""

    def __init__(
        self, model: Any, held: _Set | None, config: SLMConfig, pad_id: int, width: int = 0
    ) -> None:
        self._model, self._held, self._config, self._pad_id = model, held, config, pad_id
        self._width = width
        self._best: tuple[float, int, dict[str, torch.Tensor]] | None = None
        self.accuracies: list[tuple[int, float]] = []

    def measure(self, step: int) -> None:
        if (held := self._held) is None:
            return
        self._model.eval()
        right = 0
        with torch.no_grad():
            for chosen in by_length(held.lengths, 32):
                rows = [held.ids[i] for i in chosen]
                logits = _logits(
                    self._model, rows, self._pad_id, self._config.precision, self._width
                )
                right += int((logits.argmax(-1) == held.targets[chosen].argmax(-1)).sum())
        accuracy = right / len(held.ids)
        self.accuracies.append((step, accuracy))
        if self._best is None or accuracy >= self._best[0]:
            self._best = (
                accuracy,
                step,
                {name: p.detach().clone() for name, p in trainable(self._model).items()},
            )

    def restore(self, last: int) -> int:
        """Puts the best weights back, if any were measured; the step they are from."""
        if self._best is None:
            return last
        with torch.no_grad():
            for name, parameter in trainable(self._model).items():
                parameter.copy_(self._best[2][name])
        return self._best[1]


@torch.inference_mode()
def predict_probabilities(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    max_tokens: int = 128,
    batch_size: int = 64,
    precision: str = "auto",
    padded: bool = False,
) -> np.ndarray:
    """[n, K] float32 class probabilities, in the order of `texts`; batches of texts of like
    length, or (`padded`) all of `max_tokens`."""
    model.eval()
    rows = encode(tokenizer, texts, max_tokens)
    out = np.zeros((len(rows), model.config.num_labels), dtype=np.float32)
    width = min(max_tokens, longest(tokenizer)) if padded else 0
    for chosen in by_length([len(ids) for ids in rows], batch_size):
        out[chosen] = (
            _logits(model, [rows[i] for i in chosen], tokenizer.pad_token_id, precision, width)
            .softmax(dim=-1)
            .numpy()
        )
    return out
