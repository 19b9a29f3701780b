"""One DP-SGD step against the same step without privacy and against Opacus' engines: seconds, and
peak memory of a process of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from fedduet.lm.dp.clipped_sums import ClippedSum, LossBatch, row_losses
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.dp.dpsgd import ENGINES, prepare_generator, set_noisy_gradients
from fedduet.lm.models.load import eager_attention, trainable
from fedduet.lm.models.precision import use_bf16
from fedduet.lm.randomness import SecureNoise
from fedduet.scripts.bench.paired import Figure, device, ratio, take_turns
from fedduet.scripts.bench.shapes import random_llama
from torch import nn

ROWS, TOKENS = 8, 128
NAMES = {"ours": "book_keeping", "vmap": "vmap", "Opacus hooks": "hooks"}
AIMS = {"lora": "<= 1.05", "full": "<= 1.15"}
OVER_OPACUS = {"Opacus hooks": ">= 1.4", "Opacus ghost": ">= 1.6"}


def batch(vocabulary: int) -> LossBatch:
    """Rows of random tokens, all of one length."""
    ids = torch.randint(2, vocabulary, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    return LossBatch(
        ids.to(device()), torch.full((ROWS, TOKENS - 1), 1 / (TOKENS - 1), device=device())
    )


def way(
    shape: str, method: str, name: str, stack: ExitStack, precision: str = "auto", micro: int = 1
) -> Callable[[], None]:
    """A step: `micro` batches, noise, optimizer. "plain" is the step without clipping and noise.
    What is open closes with `stack`."""
    bf16 = use_bf16(precision, device().type)
    # ghost refuses tied weights
    model = prepare_generator(
        random_llama(shape, tied=name != "Opacus ghost"), DPConfig(tuning=method)
    )
    parameters, rows = trainable(model), batch(model.config.vocab_size)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0, fused=True)
    if name == "Opacus ghost":
        return ghost(model, rows, bf16, stack)

    if name == "plain":
        stack.enter_context(eager_attention(model))

        def plain() -> None:
            with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
                logits = model(
                    input_ids=rows.ids, attention_mask=torch.ones_like(rows.ids), use_cache=False
                ).logits
            row_losses(logits, rows.ids, rows.weights).mean().backward()

        def step() -> None:
            for _ in range(micro):
                plain()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step
    add = stack.enter_context(ENGINES[NAMES[name]](model, bf16))

    def private() -> None:
        total = ClippedSum(parameters, 1.0)
        for _ in range(micro):
            add(rows, total)
        set_noisy_gradients(parameters, total, 1.0, micro * ROWS, SecureNoise())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return private


def ghost(model: Any, rows: LossBatch, bf16: bool, stack: ExitStack) -> Callable[[], None]:
    """Opacus' ghost clipping, as its documentation says: its own criterion, two backward passes,
    its optimizer."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    stack.enter_context(eager_attention(model))
    model.train()
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=1.0, use_ghost_clipping=True, strict=False
    )
    inner = torch.optim.AdamW(trainable(model).values(), lr=1e-3, weight_decay=0.0, fused=True)
    optimizer = DPOptimizerFastGradientClipping(
        inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=ROWS
    )
    criterion = DPLossFastGradientClipping(
        wrapped, optimizer, nn.CrossEntropyLoss(reduction="mean"), loss_reduction="mean"
    )
    places = torch.arange(TOKENS, device=device()).expand(ROWS, TOKENS)

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = {
                "input_ids": rows.ids,
                "position_ids": places,
                "attention_mask": torch.ones_like(rows.ids),
                "use_cache": False,
            }
            logits = wrapped(**inputs).logits[:, :-1].float()
            shape = (ROWS, TOKENS - 1, logits.shape[-1])
            criterion(logits.flatten(0, 1), rows.ids[:, 1:].flatten(), shape=shape).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def peak_bytes(shape: str, method: str, name: str) -> int:
    """Highest memory of a process that does two steps, in bytes."""
    code = (
        f"from fedduet.scripts.bench.dp import report_peak; report_peak({shape!r}, {method!r},"
        f" {name!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def report_peak(shape: str, method: str, name: str) -> None:
    """In a process of its own: prints the bytes."""
    with ExitStack() as stack:
        step = way(shape, method, name, stack)
        step()
        step()
    print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else high_water())


def high_water() -> int:
    """Bytes that this process held at most; the kernel's ru_maxrss would count what the parent
    held."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def compared(
    turns: int, shape: str, method: str, names: list[str], **settings: Any
) -> dict[str, list[float]]:
    """Seconds of a step by each of `names`, each with a model of its own."""
    with ExitStack() as stack:
        return take_turns(
            {name: way(shape, method, name, stack, **settings) for name in names}, turns
        )


def measure(turns: int, small: bool) -> list[Figure]:
    """Ratios for LoRA and for all weights, at both shapes (`small`: the smaller one only)."""
    figures = []
    for shape in ["12.5 M"] if small else ["12.5 M", "135 M"]:
        for method, others in {"lora": ["vmap"], "full": ["Opacus hooks", "Opacus ghost"]}.items():
            where = f"{shape}, {'LoRA' if method == 'lora' else 'all weights'}"
            seconds = compared(turns, shape, method, ["plain", "ours", *others])
            figures.append(against_plain(f"{where}, {ROWS} x {TOKENS}", seconds, AIMS[method]))
            for other in others:
                value, spread = ratio(seconds, other, "ours")
                figures.append(
                    Figure(
                        "dp",
                        f"{other} / ours, {where}",
                        value,
                        "x",
                        OVER_OPACUS.get(other, ""),
                        spread,
                    )
                )
            if method == "full":
                float32 = compared(turns, shape, method, ["plain", "ours"], precision="fp32")
                figures.append(
                    against_plain(f"{where}, {ROWS} x {TOKENS}, float32", float32, AIMS[method])
                )
                logical = compared(1, shape, method, ["plain", "ours"], micro=8)
                figures.append(
                    against_plain(f"{where}, 8 micro-batches and one noise", logical, AIMS[method])
                )
                plain, ours = peak_bytes(shape, method, "plain"), peak_bytes(shape, method, "ours")
                detail = f"{ours / 2**20:.0f} MiB, {plain / 2**20:.0f} without privacy"
                figures.append(
                    Figure(
                        "dp",
                        f"peak memory DP / plain, {where}",
                        ours / plain,
                        "x",
                        "<= 1.15",
                        detail,
                    )
                )
    return figures


def against_plain(where: str, seconds: dict[str, list[float]], aim: str) -> Figure:
    """The step with privacy over the one without."""
    value, spread = ratio(seconds, "ours", "plain")
    detail = f"{spread}; {statistics.median(seconds['plain']):.3f} s without privacy"
    return Figure("dp", f"DP step / plain step, {where}", value, "x", aim, detail)
