"""CrossLM (Deng et al. 2023, arXiv 2312.05842): the LLM writes, the sites' SLMs score, the scores
steer the LLM, and both learn."""

from __future__ import annotations

from typing import Literal

import pydantic
from fedduet.strategies.baselines import REGISTRY, Baselines, available, columns, run_baselines
from fedduet.strategies.crosslm_moves import CrossLMMoves
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.spec import Spec, TunedLLM
from fedduet.strategies.run.texts import Texts, merge, shared_by_all

OWN = ("zero_shot", "filtered", "llm_unfiltered", "llm_pooled")


class CrossLMConfig(TunedLLM, Baselines):
    """CrossLM and its baselines."""

    # training on own records alone is a step of the method, and so is measuring the LLM
    KNOWN = (*OWN, *(name for name in available() if name not in ("local", "llm_zero_shot")))
    name: Literal["crosslm"]
    """This strategy."""
    rounds: int = pydantic.Field(3, ge=1)
    """Rounds of writing, scoring and tuning; the privacy budget is planned over all together."""
    per_label: int = pydantic.Field(24, ge=1)
    """Texts of each label for each site's domain in a round."""
    share: Literal["domain", "all"] = "all"
    """all: every site learns from all accepted texts; domain: from those for its own domain."""
    weight: float = pydantic.Field(1.0, ge=0)
    """lambda of L = CE(own records) + lambda * sum of reward * CE(accepted texts)."""
    order: Literal["together", "generated_first"] = "together"
    """together, or generated_first: generated texts, then the site's own."""
    aggregate: Literal["uniform", "rows", "median"] = "uniform"
    """Of the sites' scores: uniform, by number of records (rows), or their median."""
    accept: float | None = pydantic.Field(None, ge=0, le=1)
    """Tau: the least reward of an accepted text; null: that of no opinion [O]."""
    keep_at_least: int = pydantic.Field(4, ge=1)
    """Texts of a label, the best ones, where fewer are accepted."""
    adapters: Literal["separate", "shared"] = "separate"
    """One LoRA adapter for generating and one for the task, or one shared by both."""


def crosslm(
    moves: Moves, config: CrossLMConfig, scorer: str = "local", demonstrations: Texts | None = None
) -> None:
    """METHODS, CrossLM steps 1 to 6. `scorer`: the sites' SLM that scores the first round;
    `demonstrations`: public or released examples that the LLM is shown. An LLM that cannot be tuned
    is steered by showing it the best texts of the round before (selection only)."""
    steering = CrossLMMoves(moves, config)
    if scorer == "local":
        moves.learn("local")
    steering.measure("before")
    data: Texts = {}
    shown = demonstrations
    for round in range(config.rounds):
        texts = steering.write(f"write-{round}", shown)
        rewards = steering.score(round, scorer, texts)
        accepted, short = steering.accept(texts, rewards)
        steering.record(round, texts, rewards, accepted, short)
        data = merge(data, accepted)
        if steering.tunes:
            steering.tune_generator(round, rewards)
            steering.tune_task(round, data)
        else:
            shown = accepted
        scorer = "crosslm" if round == config.rounds - 1 else f"crosslm-round-{round}"
        _learn(moves, config, scorer, data)
    own = (
        lambda: no_feedback(moves, steering, config),
        lambda: filtered(moves, steering, config),
        steering.tune_unfiltered,
        steering.tune_pooled,
    )
    run_baselines(moves, config, dict(zip(OWN, own, strict=True)))


def no_feedback(moves: Moves, steering: CrossLMMoves, config: CrossLMConfig) -> None:
    """Baseline: the same number of texts from the LLM as it came, all of them, each counting the
    same."""
    _learn(moves, config, "zero_shot", steering.untuned_texts())


def filtered(moves: Moves, steering: CrossLMMoves, config: CrossLMConfig) -> None:
    """Baseline: the scores only choose and weigh texts; the LLM stays as it came. Its scores are a
    release beside the run's."""
    texts = steering.untuned_texts()
    rewards = steering.score(0, "local", texts, baseline=True)
    _learn(moves, config, "filtered", steering.accept(texts, rewards)[0])


def _learn(moves: Moves, config: CrossLMConfig, model: str, data: Texts) -> None:
    """Each site learns from texts for all domains, the domain not named, or from those for its
    own."""
    given = shared_by_all(data) if config.share == "all" else data
    moves.learn(model, given, weight=config.weight, order=config.order)


METHODS = {
    "filtered": (
        "own records and such texts, chosen and weighed by the sites' scores; the LLM stays as it"
        " came"
    ),
    "crosslm": "own records and texts of an LLM that the sites' scores steer",
}
SPEC = Spec(
    name="crosslm",
    config=CrossLMConfig,
    run=crosslm,
    final="crosslm",
    question=(
        "Do private SLMs and an LLM get better together, when sites only score texts that the LLM"
        " wrote?"
    ),
    contrasts=(("crosslm", "zero_shot"), ("crosslm", "filtered")),
    columns=columns(
        CrossLMConfig.KNOWN,
        {"local": REGISTRY["local"].meaning, "zero_shot": REGISTRY["zero_shot"].meaning, **METHODS},
    ),
)
