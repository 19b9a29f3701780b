"""DP-SGD fine-tuning of a causal LM on private texts: Poisson sampling, per-example clipping,
Gaussian noise (Abadi et al. 2016)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fedduet.lm.dp.bookkeeping import book_keeping_engine
from fedduet.lm.dp.clipped_sums import ClippedSum, Engine, hooks_engine, unit_batch, vmap_engine
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.models.batch import by_length, encode_document, width_multiple
from fedduet.lm.models.load import attach_lora, trainable
from fedduet.lm.models.precision import use_bf16
from fedduet.lm.progress import report
from fedduet.lm.randomness import NoiseSource


@dataclass(frozen=True)
class TrainReport:
    """What ran. `batch_sizes` are private coins' outcomes and stay at the site; the rest is
    public."""

    steps: int
    sample_rate: float
    batch_sizes: tuple[int, ...]
    seconds: float


def planned_steps(config: DPConfig, n: int) -> tuple[int, float]:
    """(steps, sample rate q) that `train_generator` will run on `n` units: q = min(1, logical_batch
    / n), steps = epochs / q."""
    if n < 1:
        raise ValueError(f"found {n} private texts; DP-SGD needs at least 1")
    rate = min(1.0, config.logical_batch / n)
    return config.steps or max(1, round(config.epochs / rate)), rate


def prepare_generator(model: Any, config: DPConfig, seed: int = 0) -> Any:
    """`model` with what `config.tuning` trains made trainable: new LoRA adapters (from the public
    `seed`), or every weight."""
    if config.tuning == "lora":
        targets = config.targets if isinstance(config.targets, str) else list(config.targets)
        return attach_lora(model, config.rank, config.alpha, targets=targets, seed=seed)
    return model.requires_grad_(True)


ENGINES: dict[str, Callable[[Any, bool], AbstractContextManager[Engine]]] = {
    "book_keeping": book_keeping_engine,
    "vmap": vmap_engine,
    "hooks": hooks_engine,
}


def poisson_batch(n: int, rate: float, randomness: NoiseSource) -> list[int]:
    """Unit numbers of one step's batch: every unit is in it with probability `rate`, independently
    of all else; it may be empty."""
    return np.flatnonzero(randomness.uniform(n) < rate).tolist()


def rows_of_units(owners: Sequence[int]) -> list[list[int]]:
    """The row numbers of each unit, units in order of their first row; `owners[i]` is row i's
    unit."""
    units: dict[int, list[int]] = {}
    for row, owner in enumerate(owners):
        units.setdefault(owner, []).append(row)
    return list(units.values())


def some_rows(rows: list[int], most: int, randomness: NoiseSource) -> list[int]:
    """At most `most` of a unit's rows, drawn anew for every step."""
    return (
        rows
        if len(rows) <= most
        else [rows[i] for i in np.argsort(randomness.uniform(len(rows)))[:most]]
    )


def train_generator(
    model: Any,
    tokenizer: Any,
    controls: Sequence[str],
    texts: Sequence[str],
    config: DPConfig,
    noise_multiplier: float,
    randomness: NoiseSource,
    owners: Sequence[int] | None = None,
    phase: str = "dp-sgd",
    watch: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
    engine: Callable[[Any, bool], AbstractContextManager[Engine]] | None = None,
) -> TrainReport:
    """Trains the trainable parameters of `model` in place (see `prepare_generator`) on controls[i]
    + texts[i] + EOS.

    Each step: a Poisson batch; the gradient of each row's own mean token loss, clipped to C; their
    sum plus N(0, (sigma C)^2) on every coordinate; divided by the EXPECTED batch size q n; AdamW
    with a constant learning rate, no weight decay, no dropout [O]. An empty batch is a step of
    noise alone. `noise_multiplier` (sigma) 0 is epsilon = infinity, with the clipping kept. Two
    trainings are neighbours when one has one text more; the guarantee is the accountant's for
    (sigma, q, steps) as `planned_steps` states them. With `owners` (text i belongs to user
    owners[i]) users stand where texts stood: users are drawn, what is clipped is the mean gradient
    of some of a user's texts (Charles et al. 2024, arXiv 2407.07737, user-level sampling), n counts
    users, neighbours differ in a user. `randomness` gives coins and noise: `SecureNoise()` at a
    site. `watch(step, gradients)` sees what the mechanism shows in each step, the noisy gradients,
    before the weights change, and `engine` replaces the configured one: for audits
    (lm/attacks/one_run_audit.py). Losses are neither kept nor reported, they are private. Raises
    ValueError for lists of different lengths, no trainable parameters, or a negative or non-finite
    noise multiplier.
    """
    units = rows_of_units(range(len(texts)) if owners is None else owners)
    if sum(map(len, units)) != len(texts):
        raise ValueError(
            f"found {sum(map(len, units))} owners for {len(texts)} texts; one each is needed"
        )
    if len(controls) != len(texts):
        raise ValueError(
            f"found {len(controls)} control codes for {len(texts)} texts; one each is needed"
        )
    if not (np.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(
            f"noise_multiplier: found {noise_multiplier}; allowed: a finite number of 0 or more"
        )
    parameters = trainable(model)
    if not parameters:
        raise ValueError("the model has no trainable parameters; call prepare_generator first")
    began = time.monotonic()
    steps, rate = planned_steps(config, len(units))
    rows = [
        encode_document(tokenizer, c, t, config.max_tokens)
        for c, t in zip(controls, texts, strict=True)
    ]
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.learning_rate, weight_decay=0.0, fused=True
    )
    engine, multiple = engine or ENGINES[config.engine], width_multiple(model)
    sizes = []
    device = next(iter(parameters.values())).device
    with engine(model, use_bf16(config.precision, device.type)) as add:
        for step in range(steps):
            chosen = [
                some_rows(units[i], config.records_per_user, randomness)
                for i in poisson_batch(len(units), rate, randomness)
            ]
            total = ClippedSum(parameters, config.clip)
            sizes_in_memory = [len(unit) * max(len(rows[i].ids) for i in unit) for unit in chosen]
            at_once = max(1, config.micro_batch // max(map(len, chosen), default=1))
            for micro in by_length(sizes_in_memory, at_once):
                batch = [[rows[i] for i in chosen[place]] for place in micro]
                learn_context = not config.mask_control_code
                units_of_rows = unit_batch(batch, tokenizer.pad_token_id, learn_context, multiple)
                add(units_of_rows.to(device), total)
            set_noisy_gradients(parameters, total, noise_multiplier, rate * len(units), randomness)
            if watch:
                watch(step, {name: parameter.grad for name, parameter in parameters.items()})
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            sizes.append(len(chosen))
            report(phase, step + 1, steps, "steps")
    model.eval()
    return TrainReport(steps, rate, tuple(sizes), time.monotonic() - began)


def set_noisy_gradients(
    parameters: dict[str, torch.nn.Parameter],
    total: ClippedSum,
    sigma: float,
    expected: float,
    randomness: NoiseSource,
) -> None:
    """Makes the clipped sum (clipped sum + sigma * C * N(0, I)) / expected, in place, and every
    parameter's `.grad`."""
    for name, parameter in parameters.items():
        gradient = total.sums[name]
        if sigma > 0:
            randomness.add_noise(gradient, sigma * total.clip)
        parameter.grad = gradient.div_(expected).to(parameter.dtype)
