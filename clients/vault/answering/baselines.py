"""What the search is compared with, at the same budget: one model or a fixed mixture writes whole
solutions; one is taken or they vote."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedduet.clients.vault.answering.config import Baseline, SearchConfig
from fedduet.clients.vault.answering.solving import (
    Costs,
    Form,
    Part,
    RewardModel,
    Score,
    Solution,
    SolvedStep,
    Solver,
    Write,
    check_questions,
    common_room,
    joined,
    solve_together,
)
from fedduet.clients.vault.answering.steps import DELIMITER, StepAsk, StepWriter
from fedduet.clients.vault.answering.tree import SCORES
from fedduet.lm.randomness import derive


def sample_many(
    baseline: Baseline,
    questions: Sequence[str],
    seeds: Sequence[int],
    writers: Mapping[str, StepWriter],
    form: Form,
    config: SearchConfig,
    samples: int = 1,
    reward: RewardModel | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Solution]:
    """One solution for each question, all drawn side by side, under the search's settings: at most
    `samples` (with "only": one) whole solutions, fewer where `llm_token_budget`, `steps` (of which
    a solution is one here) or `seconds` runs out.

    Raises ValueError as `search_many` does, and for "best" without a reward model.
    """
    if baseline.choose == "best" and reward is None:
        raise ValueError("found no reward model; Best-of-N needs one to say which is best")
    room = common_room(writers, [baseline.mode])
    check_questions(questions, form, room, config.step_tokens)
    start = clock()
    wanted = 1 if baseline.choose == "only" else samples
    solvers = [
        _solve(baseline, question, seed, form, config, wanted, room, lambda: clock() - start)
        for question, seed in zip(questions, seeds, strict=True)
    ]
    return solve_together(solvers, writers, reward)


@dataclass
class _Sample:
    steps: tuple[str, ...]
    finished: bool
    degraded: bool
    answer: str | None
    key: Hashable
    rewards: tuple[float, ...] = ()
    score: float = 0.0


def _solve(
    baseline: Baseline,
    question: str,
    seed: int,
    form: Form,
    config: SearchConfig,
    wanted: int,
    room: Callable[[str], int],
    elapsed: Callable[[], float],
) -> Solver:
    """Draws in waves. Under an LLM-token budget a wave has as many solutions as would fit if each
    were twice as long as the longest so far, each may take an equal share of what is left, and the
    first is one alone [O]: so the budget is never passed, and nearly used."""
    costs, samples, longest, asked = Costs(), [], 0, 0
    prompt = form.prompt(question, ())
    most = min(room(prompt), config.solution_tokens)
    stopped = ""
    while not (stopped := _stop(baseline, config, costs, wanted - asked, elapsed)):
        count, cap = wanted - asked, most
        if config.steps is not None:
            count = min(count, config.steps - costs.steps)
        if config.llm_token_budget is not None and baseline.mode not in ("base", "private"):
            left = config.llm_token_budget - costs.llm_tokens
            count = min(count, max(1, left // (2 * longest) if longest else 1))
            cap = min(most, left // count)
        temperature = config.temperature if baseline.sampled else 0.0
        asks = [
            StepAsk(
                prompt,
                derive(seed, "sample", asked + i),
                cap,
                temperature,
                config.top_p,
                whole=True,
            )
            for i in range(count)
        ]
        asked += count
        for step in (yield Write([(baseline.mode, ask) for ask in asks])):
            costs.add(step)
            longest = max(longest, step.llm_tokens)
            lines = tuple(line.strip() for line in step.text.split(DELIMITER) if line.strip())
            if step.end == "error" or not lines:
                costs.dropped += 1
                continue
            finished = step.ended or form.final(lines[-1])
            answer = form.answer(joined(lines)) if finished else None
            samples.append(
                _Sample(
                    lines,
                    finished,
                    step.degraded,
                    answer,
                    None if answer is None else form.key(answer),
                )
            )
    if baseline.choose == "best":
        yield from _score(question, samples, config, costs)
    chosen = _choose(baseline, samples, config)
    steps = chosen.steps if chosen else ()
    rewards = chosen.rewards if chosen and chosen.rewards else (None,) * len(steps)
    mode = "private" if chosen and chosen.degraded else baseline.mode
    return Solution(
        question,
        joined(steps),
        chosen.answer if chosen else None,
        chosen.score if chosen else 0.0,
        bool(chosen and chosen.finished),
        tuple(
            SolvedStep(text, mode, reward, bool(chosen and chosen.degraded))
            for text, reward in zip(steps, rewards, strict=True)
        ),
        costs,
        elapsed(),
        stopped,
        tuple(_rows(samples)),
    )


def _stop(
    baseline: Baseline, config: SearchConfig, costs: Costs, left: int, elapsed: Callable[[], float]
) -> str:
    if left < 1:
        return "samples"
    if config.steps is not None and costs.steps >= config.steps:
        return "steps"
    if config.seconds is not None and elapsed() >= config.seconds:
        return "seconds"
    paid = config.llm_token_budget is not None and baseline.mode not in ("base", "private")
    return "llm_tokens" if paid and costs.llm_tokens >= (config.llm_token_budget or 0) else ""


def _score(question: str, samples: list[_Sample], config: SearchConfig, costs: Costs) -> Part:
    """Rewards every step that the path score asks for, equal solutions once."""
    distinct = list(dict.fromkeys(sample.steps for sample in samples))
    states = [
        (question, steps[:end])
        for steps in distinct
        for end in range(len(steps) if config.path_score == "last" else 1, len(steps) + 1)
    ]
    rewards = yield Score(states)
    found: dict[tuple[str, ...], float] = {}
    for (_, steps), value in zip(states, rewards, strict=True):
        found[steps] = costs.reward(value)
    for sample in samples:
        sample.rewards = tuple(
            found[sample.steps[:end]]
            for end in range(1, len(sample.steps) + 1)
            if sample.steps[:end] in found
        )
        sample.score = SCORES[config.path_score](sample.rewards)
        sample.rewards = sample.rewards if len(sample.rewards) == len(sample.steps) else ()


def _choose(baseline: Baseline, samples: list[_Sample], config: SearchConfig) -> _Sample | None:
    """The winning sample; those with an answer before finished ones before others, the earlier of
    equals."""
    votes: dict[Hashable, float] = defaultdict(float)
    for sample in samples:
        if sample.answer is not None:
            votes[sample.key] += 1.0 if baseline.choose == "majority" else sample.score
    among = samples
    if votes and (
        baseline.choose == "majority" or (baseline.choose == "best" and config.answer == "vote")
    ):
        winner = max(votes, key=votes.__getitem__)
        among = [sample for sample in samples if sample.answer is not None and sample.key == winner]
    return max(
        among,
        key=lambda sample: (sample.answer is not None, sample.finished, sample.score),
        default=None,
    )


def _rows(samples: list[_Sample]) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "parent": None,
            "text": joined(sample.steps),
            "finished": sample.finished,
            "answer": sample.answer,
        }
        | {"reward": sample.score}
        for number, sample in enumerate(samples)
    ]
