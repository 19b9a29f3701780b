"""Tokens per second of sampling against `transformers.generate`, for texts of uneven lengths, and
the distance to the memory limit."""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.stepper import stepper
from fedduet.lm.models.precision import use_bf16
from fedduet.scripts.bench.machine import memory_rate
from fedduet.scripts.bench.paired import Figure, device, ratio, take_turns
from fedduet.scripts.bench.shapes import SHAPES, random_llama

BATCH, PROMPT = 32, 32


def lengths(count: int) -> list[int]:
    """New tokens of each row: most short, some long, as texts are (geometric with mean 40, at most
    96)."""
    draws = torch.empty(count).geometric_(1 / 40, generator=torch.Generator().manual_seed(0))
    return draws.clamp(4, 96).long().tolist()


def plain(model: Any, prompts: torch.Tensor, wanted: list[int]) -> None:
    """`transformers.generate` in batches of 32: a batch goes on until its longest row has ended."""
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        longest = max(wanted[start : start + BATCH])
        settings = {
            "do_sample": True,
            "top_k": 50,
            "max_new_tokens": longest,
            "min_new_tokens": longest,
            "pad_token_id": 0,
        }
        model.generate(input_ids=part, attention_mask=torch.ones_like(part), **settings)


def ours(run: Any, prompts: torch.Tensor, wanted: list[int]) -> None:
    """The product's decode loop: rows leave as they end, which nobody knows before, and others take
    their places."""
    most = max(wanted)
    ends = [lambda new, count=count: len(new) == count for count in wanted]
    asks = [
        Ask(tuple(row), most, top_k=50, seed=i, stopped=end)
        for i, (row, end) in enumerate(zip(prompts.tolist(), ends, strict=True))
    ]
    decode(run, asks, ends=frozenset())


def measure(turns: int, small: bool) -> list[Figure]:
    """Ratios at both shapes, float32 against float32, and as the engine runs by default."""
    figures = []
    rate = memory_rate()
    for shape in ["12.5 M"] if small else ["12.5 M", "135 M"]:
        rows = 128 if shape == "12.5 M" else 64
        model = random_llama(shape)
        prompts = torch.randint(
            2,
            SHAPES[shape]["vocab_size"],
            (rows, PROMPT),
            generator=torch.Generator().manual_seed(1),
        ).to(device())
        wanted = lengths(rows)
        dtype = torch.bfloat16 if use_bf16("auto", device().type) else torch.float32
        steppers = {"float32": stepper(model), "auto": stepper(model, dtype)}
        ways = {"plain": lambda m=model, p=prompts, w=wanted: plain(m, p, w)}
        ways |= {
            name: lambda run=run, p=prompts, w=wanted: ours(run, p, w)
            for name, run in steppers.items()
        }
        if dtype == torch.bfloat16:
            half = random_llama(shape).to(dtype)
            ways["plain bf16"] = lambda m=half, p=prompts, w=wanted: plain(m, p, w)
        with torch.inference_mode():
            seconds = take_turns(ways, turns)
        where = f"{shape}, {rows} rows of 4 to 96 tokens"
        for name, other in {
            "float32": "plain",
            "auto": "plain",
            **({"auto ": "plain bf16"} if dtype == torch.bfloat16 else {}),
        }.items():
            value, spread = ratio(seconds, other, name.strip())
            tokens = sum(wanted) / statistics.median(seconds[name.strip()])
            label = {
                "float32": "float32 / generate float32",
                "auto": f"{dtype} / generate float32",
                "auto ": f"{dtype} / generate {dtype}",
            }[name]
            figures.append(
                Figure(
                    "generate",
                    f"{label}, {where}",
                    value,
                    "x",
                    ">= 3",
                    f"{spread}; {tokens:.0f} tokens/s",
                )
            )
        figures += [
            limit(shape, model, steppers["auto"], prompts, dtype, turns, rate),
            *on_all_cores(shape, steppers["auto"], turns),
        ]
    return figures


def on_all_cores(shape: str, run: Any, turns: int) -> list[Figure]:
    """Rows dealt to as many threads as there are cores, against one thread; nothing where there is
    one core, or a GPU."""
    cores, rows = os.cpu_count() or 1, 256 if shape == "12.5 M" else 128
    if cores < 2 or device().type != "cpu":
        return []
    prompts = torch.randint(
        2, SHAPES[shape]["vocab_size"], (rows, PROMPT), generator=torch.Generator().manual_seed(1)
    )
    wanted = lengths(rows)

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        try:
            ours(run, prompts, wanted)
        finally:
            torch.set_num_threads(1)

    value, spread = ratio(
        take_turns({"one": lambda: on(1), "all": lambda: on(cores)}, turns), "one", "all"
    )
    return [
        Figure(
            "generate",
            f"one thread / {cores} threads, {shape}, {rows} rows",
            value,
            "x",
            "",
            spread,
        )
    ]


def limit(
    shape: str,
    model: Any,
    run: Any,
    prompts: torch.Tensor,
    dtype: torch.dtype,
    turns: int,
    rate: float,
) -> Figure:
    """One row at a time has to read all weights for every token: the share of the memory's rate
    that decoding reaches."""
    tokens = 64
    one = prompts[:1]
    seconds = statistics.median(take_turns({"one": lambda: ours(run, one, [tokens])}, turns)["one"])
    read = (
        sum(weight.numel() for weight in model.parameters())
        * dtype.itemsize
        * tokens
        / seconds
        / 1e9
    )
    return Figure(
        "generate",
        f"one row at a time: share of the memory limit, {shape}, {dtype}",
        read / rate,
        "",
        "",
        f"{read:.1f} of {rate:.1f} GB/s",
    )
