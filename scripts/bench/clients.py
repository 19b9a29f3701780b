"""Many simulated clients with tiny models: memory, and seconds beyond the work for each client and
phase, in one process without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from fedduet.lm.pretraining.start import train_tokenizer
from fedduet.scripts.bench.paired import Figure
from fedduet.tasks.builtin.world import public_documents
from transformers import LlamaConfig, LlamaForCausalLM

FEW, MANY = 64, 1000
SETTINGS = [
    *(
        "federation=inprocess",
        "strategy=fdkt",
        "task.rows_per_client=24",
        "task.test_rows=4",
        "strategy.demonstrations_per_label=1",
    ),
    *(
        "strategy.augment.per_label=1",
        "strategy.augment.max_rounds=1",
        "strategy.augment.max_new_tokens=12",
        "generator.steps=1",
        "generator.logical_batch=8",
    ),
    *("generator.tuning=lora", "generator.max_tokens=32", "slm.max_steps=1", "slm.method=lora"),
    "strategy.baselines={dp_only: false, zero_shot: false, fedavg: false, pooled: false}",
]
CODE = """
import json, sys
from fedduet.scripts.launching.environment import prepare
prepare()
from fedduet import conf
from fedduet.scripts.launching.launch import launch
summary = launch(conf.compose(json.loads(sys.argv[1])))
from fedduet.scripts.bench.dp import high_water
print(json.dumps([summary["seconds"], high_water()]))
"""


def tiny_model(folder: Path) -> None:
    """A random Llama of 0.1 M weights with a tokenizer of its own: SLM, generator and LLM at
    once."""
    tokenizer = train_tokenizer(public_documents(0, 200), 512, 256)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **tokens)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(clients: int, model: Path, folder: Path) -> tuple[dict[str, float], int, int]:
    """(seconds by part, peak memory in bytes, phases that asked the sites) of a run in a process of
    its own."""
    models = [f"{role}.path={model}" for role in ("slm", "generator", "llm")]
    overrides = [*SETTINGS, *models, f"task.clients={clients}", f"run.folder={folder}"]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(overrides)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the run with {clients} clients failed: {done.stderr[-500:]}")
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return seconds, peak, sum(event["event"] == "sent" for event in events)


def measure(turns: int, small: bool) -> list[Figure]:
    """64 clients against 1,000 (`small`: 16 against 64). `turns` is not used: one run each."""
    few, many = (16, 64) if small else (FEW, MANY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model(folder / "model")
        found = {
            clients: run(clients, folder / "model", folder / str(clients))
            for clients in (few, many)
        }
    figures = []
    for clients, (seconds, peak, phases) in found.items():
        beyond = 1000 * seconds["orchestration"] / (clients * phases)
        detail = (
            f"{phases} phases; {seconds['total']:.0f} s, of which clients' work"
            f" {seconds['clients']:.0f}; {peak / 2**20:.0f} MiB at most"
        )
        figures.append(
            Figure(
                "clients",
                f"{clients} clients: beyond the work, for each client and phase",
                beyond,
                "ms",
                "<= 50",
                detail,
            )
        )
    value = found[many][1] / found[few][1]
    return [
        *figures,
        Figure("clients", f"peak memory, {many} clients / {few}", value, "x", "<= 1.1"),
    ]
