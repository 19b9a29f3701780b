"""Work on many texts: few-shot prompts, similarity groups, near-copies."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from fedduet.conf.check import check
from fedduet.lm.text.near_copy import drop_near_copies
from fedduet.scripts.bench.paired import Figure, take_turns
from fedduet.server.llm.scripted import ScriptedLLM
from fedduet.server.writing.augment import AugmentConfig, text_request
from fedduet.server.writing.curate import Demonstration
from fedduet.server.writing.grouping import group_by_similarity
from fedduet.server.writing.shots import ShotQueue
from fedduet.tasks.builtin.world import world_records
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task

from fedduet import conf


def prompts(count: int) -> Callable[[], object]:
    """Few-shot prompts of the built-in world's task, two demonstrations of each label, words
    counted as tokens."""
    task = build_task(check(TaskConfig, conf.compose([])["task"], "task"))
    shown = [
        Demonstration(record.text, record.label, "tents", "tents")
        for record in world_records("tents", 400, "bench")
    ]
    llm, config = ScriptedLLM(lambda request: ""), AugmentConfig()

    def build() -> None:
        queue = ShotQueue(shown, len(task.labels), 0)
        for number in range(count):
            text_request(
                queue,
                task,
                llm,
                llm.count_tokens,
                "tents",
                number % len(task.labels),
                config,
                number,
                1,
                Counter(),
            )

    return build


def measure(turns: int, small: bool) -> list[Figure]:
    """Seconds; `small` leaves out the 100,000 texts."""
    vectors = np.random.default_rng(0).standard_normal((10_000, 384), dtype=np.float32)
    texts = [record.text for record in world_records("tents", 10_000, "bench")]
    ways = {
        "20,000 few-shot prompts built": (prompts(20_000), "<= 1"),
        "10,000 texts grouped (384-d, groups of 8 at most)": (
            lambda: group_by_similarity(vectors, 8, 0.5),
            "<= 5",
        ),
        "near-copies among 10,000 texts": (lambda: drop_near_copies(texts), ""),
    }
    seconds = take_turns({name: way for name, (way, _) in ways.items()}, turns)
    figures = [
        Figure("texts", name, statistics.median(seconds[name]), "s", aim)
        for name, (_, aim) in ways.items()
    ]
    if not small:
        vectors = np.random.default_rng(0).standard_normal((100_000, 384), dtype=np.float32)
        texts = [
            record.text
            for domain in range(10)
            for record in world_records("tents", 10_000, f"bench/{domain}")
        ]
        more = {
            "100,000 texts grouped": lambda: group_by_similarity(vectors, 8, 0.5),
            "near-copies among 100,000 texts": lambda: drop_near_copies(texts),
        }
        for name, way in more.items():  # minutes: once, without a turn before
            began = time.perf_counter()
            way()
            figures.append(Figure("texts", name, time.perf_counter() - began, "s"))
    return figures
