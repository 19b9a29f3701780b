"""Questions per second of the tree search, all questions side by side against one at a time, on
small random Llama models.

The ways take turns (A B C A B C ...), so that other load on the machine meets them all; the median
of each turn's ratios is printed. Random weights write nonsense of the same length as sense, so the
work is that of real models of the size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fedduet.clients.vault.answering.config import SearchConfig
from fedduet.clients.vault.answering.search import search_many
from fedduet.clients.vault.answering.solving import Form, Solution, State
from fedduet.clients.vault.answering.steps import StepWriter
from fedduet.clients.vault.answering.writers import local_writers
from fedduet.lm.models.load import attach_lora, trainable
from fedduet.lm.pretraining.start import train_tokenizer
from fedduet.scripts.bench.paired import ratio, take_turns
from fedduet.tasks.builtin.world import public_documents
from transformers import LlamaConfig, LlamaForCausalLM

FORM = Form(
    prompt=lambda question, steps: "\n".join([question, *steps, ""]),
    answer=lambda text: text or None,
)


class Checksum:
    """Rewards that depend on the text in no useful way."""

    def score(self, states: Sequence[State]) -> list[float]:
        """As `RewardModel.score`."""
        return [zlib.crc32(repr(state).encode()) / 2**32 for state in states]


def random_writers(hidden: int, layers: int) -> dict[str, StepWriter]:
    """Writers of an LLM of that shape and a SLM of half its width with a LoRA adapter."""
    tokenizer = train_tokenizer(public_documents(0, 300), 2048, 512)
    torch.manual_seed(0)

    def model(width: int) -> Any:
        shape = {
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
        }
        tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            **shape,
            **tokens,
        )
        return LlamaForCausalLM(config).eval()

    tuned = attach_lora(model(hidden // 2), 8, 16)
    for weight in trainable(tuned).values():
        torch.nn.init.normal_(weight, std=0.02)
    return local_writers((tuned, tokenizer), llm=(model(hidden), tokenizer))


def main(argv: list[str] | None = None) -> int:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(
        prog="python -m fedduet.scripts.bench.search", description=__doc__
    )
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3, help="how often each way is timed")
    parser.add_argument(
        "--hidden", type=int, default=128, help="width of the LLM; the SLM has half"
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--parallel", type=int, default=4, help="leaves in a round")
    arguments = parser.parse_args(argv)
    writers = random_writers(arguments.hidden, arguments.layers)
    words = "Question {0}: a mug costs {0} coins and a pan {1}. What do two mugs and a pan cost?"
    questions = [words.format(number, number + 3) for number in range(arguments.questions)]
    config = SearchConfig(
        iterations=arguments.iterations, parallel=arguments.parallel, step_tokens=16, max_steps=6
    )
    serial = config.model_copy(update={"parallel": 1})

    def apart(settings: SearchConfig) -> list[Solution]:
        pairs = enumerate(questions)
        return [
            search_many([question], [number], writers, Checksum(), FORM, settings)[0]
            for number, question in pairs
        ]

    ways: dict[str, Callable[[], list[Solution]]] = {
        "together": lambda: search_many(
            questions, range(len(questions)), writers, Checksum(), FORM, config
        ),
        "one at a time": lambda: apart(config),
        "one at a time, one leaf a round": lambda: apart(serial),
    }
    seconds = take_turns(ways, arguments.turns)
    for name, times in seconds.items():
        print(f"{name}: {len(questions) / statistics.median(times):.2f} questions/s", flush=True)
    for name in list(ways)[1:]:
        value, spread = ratio(seconds, name, "together")
        print(f"together: {value:.2f} times the questions per second of {name} ({spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
