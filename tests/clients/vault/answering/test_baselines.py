"""Baselines on the toy language of digits: what each chooses, and that none passes its budget."""

import zlib
from dataclasses import replace

import pytest
from fedduet.clients.vault.answering.baselines import sample_many
from fedduet.clients.vault.answering.config import BASELINES, Baseline, SearchConfig
from fedduet.clients.vault.answering.solving import Form
from fedduet.clients.vault.answering.steps import Step
from fedduet.lm.randomness import derive

FORM = Form(
    prompt=lambda question, steps: "\n".join([question, *steps, ""]),
    answer=lambda text: text.splitlines()[-1],
    key=float,
)


class Solutions:
    """Writes one of some whole solutions by the seed, the first when greedy; as many tokens as it
    has characters."""

    def __init__(self, solutions, llm=0):
        self.solutions, self.llm, self.asks = solutions, llm, []

    def room(self, prefix):
        return 100

    def write(self, asks):
        self.asks.append(list(asks))
        return [self._step(ask) for ask in asks]

    def _step(self, ask):
        assert ask.whole
        text = self.solutions[
            0 if ask.temperature == 0 else zlib.crc32(f"{ask.seed}".encode()) % len(self.solutions)
        ]
        count = min(len(text) + 1, ask.max_tokens)
        done = count == len(text) + 1
        return Step(
            text if done else text[:count], "end" if done else "length", count * self.llm, count
        )


class Known:
    """Rewards by the last step."""

    def __init__(self, rewards):
        self.rewards, self.states = rewards, []

    def score(self, states):
        self.states += states
        return [self.rewards[steps[-1]] for _, steps in states]


def settings(**changes):
    small = {"step_tokens": 8, "solution_tokens": 40, "path_score": "last"}
    return SearchConfig(**{**small, **changes})


def sample(baseline, solutions, samples=30, reward=None, **changes):
    llm = baseline.mode not in ("base", "private")
    writer = Solutions(solutions, int(llm))
    return (
        sample_many(
            baseline,
            ["?"],
            [3],
            {baseline.mode: writer},
            FORM,
            settings(**changes),
            samples,
            reward,
        )[0],
        writer,
    )


def test_every_method_of_the_comparison_is_named():
    assert set(BASELINES) == {
        f"{model}{how}"
        for model in ("slm_base", "slm", "llm", "proxy_tuning", "average")
        for how in ("", "_best_of_n", "_majority")
    }
    assert BASELINES["proxy_tuning"].mode == "collaborative" and BASELINES["slm"].mode == "private"


def test_the_only_one_is_greedy():
    solution, writer = sample(Baseline("llm"), ["a\nb\n7", "8"])
    assert (solution.text, solution.answer, solution.finished, solution.stopped) == (
        "a\nb\n7",
        "7",
        True,
        "samples",
    )
    assert [step.text for step in solution.steps] == ["a", "b", "7"] and {
        step.mode for step in solution.steps
    } == {"llm"}
    assert (solution.costs.llm_tokens, solution.costs.reward_calls, len(writer.asks)) == (6, 0, 1)
    sampled, _ = sample(Baseline("llm", sampled=True), ["7", "8", "9"])
    assert sampled.costs.steps == 1


def test_every_solution_of_every_wave_is_drawn_with_a_seed_of_its_own():
    # under a budget of LLM tokens the first is alone, and further waves are as large as they may
    _, writer = sample(
        Baseline("llm", "majority", True), ["7", "8"] * 6, samples=6, llm_token_budget=100
    )
    assert len(writer.asks) > 1 and len(writer.asks[0]) == 1
    drawn = [ask.seed for wave in writer.asks for ask in wave]
    assert drawn == [derive(3, "sample", number) for number in range(6)]


@pytest.mark.parametrize(
    ("score", "answer", "states"),
    [("last", "9", 3), ("min", "8", 6), ("mean", "8", 6), ("product", "8", 6)],
)
def test_best_of_n_by_each_score(score, answer, states):
    reward = Known({"x": 0.3, "y": 0.9, "z": 0.1, "7": 0.6, "8": 0.7, "9": 0.9})
    solution, _ = sample(
        Baseline("private", "best", True), ["x\n7", "y\n8", "z\n9"], reward=reward, path_score=score
    )
    # equal solutions once
    assert solution.answer == answer and len(reward.states) == solution.costs.reward_calls == states
    assert len(solution.nodes) == 30 and solution.costs.steps == 30
    assert [step.reward for step in solution.steps] == (
        [None, None] if score == "last" else [0.9, 0.7]
    )


def test_votes():
    solutions = ["7.0", "x\n7", "7", "9", "9"]
    majority, _ = sample(Baseline("llm", "majority", True), solutions, 60)
    assert float(majority.answer) == 7 and majority.costs.reward_calls == 0
    reward = Known({"7.0": 0.1, "7": 0.1, "9": 0.8})
    best, _ = sample(Baseline("llm", "best", True), solutions, 60, reward)
    voted, _ = sample(Baseline("llm", "best", True), solutions, 60, reward, answer="vote")
    assert voted.answer == "9"  # 0.1 * 3 / 5 against 0.8 * 2 / 5
    weighted, _ = sample(
        Baseline("llm", "best", True),
        ["7", "7.0", "7", "7.0", "9"],
        60,
        Known({"7.0": 0.3, "7": 0.3, "9": 0.8}),
        answer="vote",
    )
    assert best.answer == "9" and float(weighted.answer) == 7  # 0.3 * 4 / 5 against 0.8 / 5


@pytest.mark.parametrize("budget", [0, 1, 5, 7, 20, 100, 333])
def test_the_llm_token_budget_is_kept_and_used(budget):
    solutions = ["1", "12345", "1\n2\n3\n4\n5\n6"]
    solution, writer = sample(
        Baseline("llm", "majority", True), solutions, 1000, llm_token_budget=budget
    )
    assert solution.costs.llm_tokens <= budget and solution.stopped == "llm_tokens"
    assert budget - solution.costs.llm_tokens == 0
    assert len(writer.asks) <= 12  # in waves, not one by one
    left = budget
    for wave in writer.asks:
        assert sum(ask.max_tokens for ask in wave) <= left
        left -= sum(writer._step(ask).llm_tokens for ask in wave)
    free, writer = sample(Baseline("private", "majority", True), solutions, 50, llm_token_budget=0)
    assert free.costs.steps == 50 and len(writer.asks) == 1


def test_other_budgets():
    few, _ = sample(Baseline("private", "majority", True), ["7"], 50, steps=3)
    assert (few.costs.steps, few.stopped) == (3, "steps")
    cut, _ = sample(Baseline("private"), ["1\n2\n3\n4\n5"], solution_tokens=4)
    assert (cut.text, cut.answer, cut.finished) == ("1\n2", None, False)


def test_unfinished_and_failed_solutions_lose():
    class Broken(Solutions):
        def _step(self, ask):
            return Step("", "error", 1, error="x") if ask.seed % 3 else super()._step(ask)

    writers = {"llm": Broken(["7"], 1)}
    (solution,) = sample_many(
        Baseline("llm", "majority", True), ["?"], [0], writers, FORM, settings(), 20
    )
    assert solution.answer == "7" and 5 < solution.costs.dropped < 20
    writers["llm"].solutions = [""]
    (nothing,) = sample_many(
        Baseline("llm", "majority", True), ["?"], [0], writers, FORM, settings(), 20
    )
    assert (nothing.text, nothing.answer, nothing.costs.dropped) == ("", None, 20)


def test_many_questions_share_their_calls_and_keep_their_seeds():
    solutions = [str(number) for number in range(40)]
    questions, seeds = [f"q{i}" for i in range(9)], list(range(9))
    together = Solutions(solutions, 1)
    config = settings(llm_token_budget=60)
    many = sample_many(
        BASELINES["llm_majority"], questions, seeds, {"llm": together}, FORM, config, 12
    )
    calls, alone = 0, []
    for question, seed in zip(questions, seeds, strict=True):
        writer = Solutions(solutions, 1)
        alone += sample_many(
            BASELINES["llm_majority"], [question], [seed], {"llm": writer}, FORM, config, 12
        )
        calls += len(writer.asks)
    assert [replace(one, seconds=0) for one in many] == [replace(one, seconds=0) for one in alone]
    assert len(together.asks) * 5 <= calls and len({solution.answer for solution in many}) > 4


def test_bad_input():
    with pytest.raises(ValueError, match="Best-of-N needs one"):
        sample(Baseline("llm", "best", True), ["7"])
    with pytest.raises(ValueError, match="question 0: found an empty text"):
        sample_many(Baseline("llm"), [""], [0], {"llm": Solutions(["7"])}, FORM, settings())
