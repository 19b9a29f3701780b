"""CrossLM (Deng et al. 2023, arXiv 2312.05842): the LLM writes, the sites' SLMs score, the scores
steer the LLM, and both learn."""

from __future__ import annotations

from fedduet.strategies.config import CrossLMConfig
from fedduet.strategies.crosslm_moves import CrossLMMoves
from fedduet.strategies.fedavg import fedavg
from fedduet.strategies.local import local
from fedduet.strategies.pooled import pooled
from fedduet.strategies.run.moves import Moves, Texts, merge, shared_by_all


def crosslm(
    moves: Moves, config: CrossLMConfig, scorer: str = "local", demonstrations: Texts | None = None
) -> None:
    """METHODS, CrossLM steps 1 to 6. `scorer`: the sites' SLM that scores the first round;
    `demonstrations`: public or released examples that the LLM is shown. An LLM that cannot be tuned
    is steered by showing it the best texts of the round before (selection only)."""
    steering = CrossLMMoves(moves, config)
    if scorer == "local":
        local(moves)
    steering.measure("before")
    data, shown = {}, demonstrations
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
        moves.learn(scorer, _given(moves, config, data))

    baselines = {
        "zero_shot": lambda: no_feedback(moves, steering, config),
        "filtered": lambda: filtered(moves, steering, config),
        "llm_unfiltered": steering.tune_unfiltered,
        "llm_pooled": steering.tune_pooled,
        "fedavg": lambda: fedavg(moves, config.fedavg_rounds, config.fedavg_part),
        "pooled": lambda: pooled(moves),
    }
    for name, baseline in baselines.items():
        if config.wants(name):
            moves.attempt(name, baseline)


def no_feedback(moves: Moves, steering: CrossLMMoves, config: CrossLMConfig) -> None:
    """Baseline: the same number of texts from the LLM as it came, all of them, each counting the
    same."""
    moves.learn("zero_shot", _given(moves, config, steering.untuned_texts()))


def filtered(moves: Moves, steering: CrossLMMoves, config: CrossLMConfig) -> None:
    """Baseline: the scores only choose and weigh texts; the LLM stays as it came. Its scores are a
    release beside the run's."""
    texts = steering.untuned_texts()
    rewards = steering.score(0, "local", texts, baseline=True)
    moves.learn("filtered", _given(moves, config, steering.accept(texts, rewards)[0]))


def _given(moves: Moves, config: CrossLMConfig, data: Texts) -> Texts:
    """What each site learns from: texts for all domains, the domain not named, or those for its
    own."""
    return shared_by_all(data) if config.share == "all" else data
