"""How much work a configuration asks for, by kind of phase: from counts alone, nothing is loaded.
FDKT and CrossLM."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedduet.clients.vault.config import SitesPart, read_sites
from fedduet.clients.vault.prediction import predicting
from fedduet.lm.dp.dpsgd import planned_steps
from fedduet.lm.training.classify import planned_training_steps
from fedduet.lm.training.config import SLMConfig
from fedduet.server.strategy import ChosenStrategy, chosen_strategy
from fedduet.strategies.crosslm import CrossLMConfig
from fedduet.strategies.fdkt import FDKTConfig

ACCEPTED = 0.7  # share of a round's texts that the sites' scores accept, for counting ahead [O]


@dataclass(frozen=True)
class Rows:
    """What the sites hold, by site: training and test rows; the number of labels; and, by site,
    units of privacy in the training rows."""

    train: Mapping[str, int]
    test: Mapping[str, int]
    labels: int
    units: Mapping[str, int]


@dataclass(frozen=True)
class Work:
    """`calls`: how often a phase of this kind starts (at a site, or at the LLM); `units`: how much
    it then does in all."""

    calls: float
    units: float


def work(config: Mapping[str, Any], rows: Rows) -> dict[str, Work] | None:
    """By kind: `synthesize` (steps and texts, each as a share), `curate` and `score` (texts),
    `augment`, `augment_plain` and `write` (requests of one text each), `learn` (steps), `measure`
    (rows), `tune_generator` and `tune_task` (steps), `measure_llm` (rows). None for a strategy that
    is not counted here."""
    chosen, part = chosen_strategy(config["strategy"]), read_sites(config)
    if isinstance(chosen.settings, FDKTConfig):
        items = _fdkt(chosen, part, rows)
    elif isinstance(chosen.settings, CrossLMConfig):
        items = _crosslm(chosen, part, rows)
    else:
        return None
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for kind, calls, units in items:
        total[kind][0] += calls
        total[kind][1] += units
    return {kind: Work(*pair) for kind, pair in total.items()}


Items = Iterator[tuple[str, float, float]]


def _fdkt(chosen: ChosenStrategy, part: SitesPart, rows: Rows) -> Items:
    settings, augment, slm = chosen.settings, chosen.augment, part.slm
    sites, labels, rounds = len(rows.train), rows.labels, settings.rounds
    wanted, shown = (
        augment.per_label * labels,
        settings.demonstrations_per_label * labels,
    )
    generator = part.generator
    requests = sites * labels * math.ceil(augment.per_label * augment.oversample)
    if generator.predicts:
        # each text is written as many times as there are contexts
        asked = [
            predicting(generator, 1.0, n, labels, settings.demonstrations_per_label)
            for n in rows.units.values()
        ]
        read = sum(labels * one.batches * one.texts * (1 + one.room) for one in asked)
        yield "synthesize", sites * rounds, rounds * _as_steps(read)
    else:
        steps = sum(planned_steps(generator, n)[0] for n in rows.units.values())
        yield "synthesize", sites * rounds, rounds * (steps + _as_steps(sites * shown))
    yield "curate", rounds, rounds * sites * shown
    yield "augment", sites * rounds, rounds * requests
    for round in range(rounds):
        given = wanted * (round + 1) * (sites if settings.share == "all" else 1)
        yield from _learn(slm, rows, given)
    if settings.wants("local"):
        yield from _learn(slm, rows, 0)
    if settings.wants("dp_only"):
        yield from _learn(slm, rows, shown * rounds)
    if settings.wants("zero_shot"):
        yield "augment_plain", sites, requests
        yield from _learn(slm, rows, wanted)
    yield from _averaged_and_pooled(settings, slm, rows)


def _as_steps(texts: float) -> float:
    """Sampled texts in steps of DP-SGD, so that one number counts both; a pilot shrinks both alike,
    which makes the rate harmless."""
    return texts / 8


def _crosslm(chosen: ChosenStrategy, part: SitesPart, rows: Rows) -> Items:
    settings, tuning, slm = chosen.settings, chosen.tuning, part.slm
    sites, labels = len(rows.train), rows.labels
    each = settings.per_label * labels * sites  # texts of a round
    tests = sites * min(settings.llm_test_rows, max(rows.test.values()))
    requests = sites * labels * math.ceil(settings.per_label * tuning.write.oversample)
    tunes = settings.tuning != "none"
    policy, learns = tuning.policy, tuning.examples
    yield from _learn(slm, rows, 0)
    yield "measure_llm", 1, tests
    accepted = 0.0
    for _ in range(settings.rounds):
        accepted += ACCEPTED * each
        yield "write", sites, requests
        yield "score", sites, sites * each
        if tunes:
            yield "tune_generator", 1, policy.epochs * math.ceil(each / policy.batch_size)
            yield "tune_task", 1, learns.epochs * math.ceil(accepted / learns.batch_size)
            yield "measure_llm", 0, tests
        yield from _learn(slm, rows, round(accepted / (1 if settings.share == "all" else sites)))
    untuned = each * settings.rounds
    if any(settings.wants(name) for name in ("zero_shot", "filtered", "llm_unfiltered")):
        yield "write", sites, requests * settings.rounds
    if settings.wants("zero_shot"):
        yield from _learn(slm, rows, untuned // (1 if settings.share == "all" else sites))
    if settings.wants("filtered"):
        yield "score", sites, sites * untuned
        yield from _learn(
            slm,
            rows,
            round(ACCEPTED * untuned / (1 if settings.share == "all" else sites)),
        )
    if tunes and settings.wants("llm_unfiltered"):
        yield "tune_task", 1, learns.epochs * math.ceil(untuned / learns.batch_size)
        yield "measure_llm", 0, tests
    if tunes and settings.wants("llm_pooled"):
        yield (
            "tune_task",
            1,
            learns.epochs * math.ceil(sum(rows.train.values()) / learns.batch_size),
        )
        yield "measure_llm", 0, tests
    yield from _averaged_and_pooled(settings, slm, rows)


def _averaged_and_pooled(settings: Any, slm: SLMConfig, rows: Rows) -> Items:
    if settings.wants("fedavg"):
        for _ in range(settings.fedavg_rounds):
            steps = sum(
                max(1, planned_training_steps(slm, n) / settings.fedavg_rounds)
                for n in rows.train.values()
            )
            yield "learn", len(rows.train), steps
        yield "measure", len(rows.test), sum(rows.test.values())
    if settings.wants("pooled"):
        yield "learn", 1, planned_training_steps(slm, sum(rows.train.values()), len(rows.train))
        yield "measure", len(rows.test), sum(rows.test.values())


def _learn(slm: SLMConfig, rows: Rows, generated: int) -> Items:
    """One model at every site, measured on its test rows. A step with generated texts costs two
    without."""
    for site, n in rows.train.items():
        yield "learn", 1, planned_training_steps(slm, n) * (2 if generated else 1)
        yield "measure", 1, rows.test[site]
