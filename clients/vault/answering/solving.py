"""What solving a question is made of: its wording, rewards, the solution with its costs, and one
round of model calls for all questions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Real
from typing import Any, Protocol

from fedduet.clients.vault.answering.steps import DELIMITER, Step, StepAsk, StepWriter

State = tuple[str, tuple[str, ...]]  # a question and its steps


class RewardModel(Protocol):
    """A process reward model."""

    def score(self, states: Sequence[State]) -> list[float]:
        """How good the last step of each state is, given all before it; in [0, 1], in their
        order."""
        ...


@dataclass(frozen=True)
class Form:
    """How a kind of question is worded and answered.

    `prompt(question, steps)`: the text that the next step continues; it ends where a step begins
    (after the delimiter, say). `answer(text)`: what the steps, joined by the delimiter, answer;
    None when that cannot be told. `key(answer)`: equal for equal answers ("7" and "7.0").
    `final(step)`: whether the step closes the solution even when the model does not end there.
    """

    prompt: Callable[[str, Sequence[str]], str]
    answer: Callable[[str], str | None]
    key: Callable[[str], Hashable] = lambda answer: answer
    final: Callable[[str], bool] = lambda step: False


@dataclass(frozen=True)
class SolvedStep:
    """A step of a solution, who wrote it, and its reward in [0, 1] (None: never scored)."""

    text: str
    mode: str
    reward: float | None
    degraded: bool = False  # the mode that was asked failed; the private model wrote it


@dataclass
class Costs:
    """What a question has cost. Tokens are drawn ones
    (`fedduet.clients.vault.answering.writers.Step`); `reward_calls` are states scored."""

    llm_tokens: int = 0
    slm_tokens: int = 0
    steps: int = 0  # asked to be written, kept or not (a baseline's whole solution counts once)
    reward_calls: int = 0
    bad_rewards: int = 0  # not numbers or outside [0, 1]: taken as 0
    degraded: int = 0
    dropped: int = 0  # steps that were empty, failed, or cut short by the budget

    def add(self, step: Step) -> None:
        self.llm_tokens += step.llm_tokens
        self.slm_tokens += step.slm_tokens
        self.steps += 1
        self.degraded += step.degraded

    def reward(self, value: float) -> float:
        """`value` as a reward, counted."""
        self.reward_calls += 1
        if not (isinstance(value, Real) and 0 <= value <= 1):  # False for NaN
            self.bad_rewards += 1
            return 0.0
        return float(value)


@dataclass(frozen=True)
class Solution:
    """What was found for a question. `answer` is None when the text holds none; `finished`: the
    path came to its end by itself.

    `stopped`: "iterations", "steps", "seconds", "llm_tokens" (budgets), "settled" (more could not
    change the answer), "exhausted" (nothing left to try), "samples" (a baseline drew all it
    should). `seconds`: from the call until this question was done, other questions of the call
    included. `nodes`: everything written, as plain data; `parent` names a node's number.
    """

    question: str
    text: str
    answer: str | None
    score: float
    finished: bool
    steps: tuple[SolvedStep, ...]
    costs: Costs
    seconds: float
    stopped: str
    nodes: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Write:
    """Steps to be written: (mode, ask) each."""

    asks: Sequence[tuple[str, StepAsk]]


@dataclass(frozen=True)
class Score:
    """States to be scored."""

    states: Sequence[State]


Solver = Generator[Write | Score, list[Any], Solution]
Part = Generator[Write | Score, list[Any], None]
"""A solver solves one question: yields `Write` and is sent steps, yields `Score` and is sent
rewards, returns the solution."""


def solve_together(
    solvers: Iterable[Solver], writers: Mapping[str, StepWriter], reward: RewardModel | None
) -> list[Solution]:
    """Runs all solvers side by side: one call of each mode's writer and one of the reward model
    serve all that wait for them."""
    running = list(solvers)
    solutions: dict[int, Solution] = {}
    waiting: dict[int, Write | Score] = {}

    def go_on(number: int, sent: list[Any] | None) -> None:
        try:
            waiting[number] = running[number].send(sent)  # type: ignore[arg-type]
        except StopIteration as end:
            waiting.pop(number, None)
            solutions[number] = end.value

    for number in range(len(running)):
        go_on(number, None)
    while waiting:
        writes = {
            number: request.asks
            for number, request in waiting.items()
            if isinstance(request, Write)
        }
        for number, steps in zip(
            writes, _cut(_written(writers, _joined(writes)), writes), strict=True
        ):
            go_on(number, steps)
        scores = {
            number: request.states
            for number, request in waiting.items()
            if isinstance(request, Score)
        }
        for number, rewards in zip(
            scores, _cut(_rewards(reward, _joined(scores)), scores), strict=True
        ):
            go_on(number, rewards)
    return [solutions[number] for number in range(len(running))]


def check_questions(
    questions: Sequence[str], form: Form, room: Callable[[str], int], tokens: int
) -> None:
    """Raises ValueError for the first question that is empty, or leaves no room for a step of
    `tokens` tokens in the context."""
    for number, question in enumerate(questions):
        if not question.strip():
            raise ValueError(
                f"question {number}: found an empty text; allowed: a question in words"
            )
        if (left := room(form.prompt(question, ()))) < tokens:
            raise ValueError(
                f"question {number}: too long for the models' context; room is left for"
                f" {max(left, 0)} tokens, a step may take {tokens} (shorten the question or"
                f" step_tokens): {question[:60]!r}"
            )


def common_room(writers: Mapping[str, StepWriter], modes: Iterable[str]) -> Callable[[str], int]:
    """Room after a prefix for every mode. Raises ValueError when a mode has no writer."""
    chosen = []
    for mode in modes:
        if mode not in writers:
            raise ValueError(
                f"found no writer for the mode {mode!r}; there are writers for"
                f" {', '.join(sorted(writers))}"
            )
        chosen.append(writers[mode])
    return lambda prefix: min(writer.room(prefix) for writer in chosen)


def joined(steps: Iterable[str]) -> str:
    """The text of a solution."""
    return DELIMITER.join(steps)


def _joined(parts: Mapping[int, Sequence[Any]]) -> list[Any]:
    return [item for part in parts.values() for item in part]


def _cut(items: Sequence[Any], parts: Mapping[int, Sequence[Any]]) -> list[list[Any]]:
    """`items` in pieces as long as the parts."""
    ends = [0, *accumulate(len(part) for part in parts.values())]
    return [list(items[start:end]) for start, end in pairwise(ends)]


def _written(writers: Mapping[str, StepWriter], asks: Sequence[tuple[str, StepAsk]]) -> list[Step]:
    """The steps of `asks`, each mode's writer called once."""
    steps: list[Step | None] = [None] * len(asks)
    for mode in dict.fromkeys(mode for mode, _ in asks):
        numbers = [number for number, (other, _) in enumerate(asks) if other == mode]
        for number, step in zip(
            numbers, writers[mode].write([asks[number][1] for number in numbers]), strict=True
        ):
            steps[number] = step
    return steps  # type: ignore[return-value]


def _rewards(reward: RewardModel | None, states: Sequence[State]) -> list[float]:
    if not states:
        return []
    if reward is None:
        raise ValueError("found no reward model; this method needs one")
    rewards = list(reward.score(states))
    if len(rewards) != len(states):
        raise ValueError(
            f"the reward model sent {len(rewards)} rewards for {len(states)} states; it must send"
            " one each"
        )
    return rewards
