"""The search on a toy language: numbers are built digit by digit by scripted writers, and the
reward of every prefix is known."""

import itertools
import math
import zlib
from dataclasses import replace

import pytest
from fedduet.clients.vault.answering.config import SearchConfig
from fedduet.clients.vault.answering.search import search_many
from fedduet.clients.vault.answering.solving import Form
from fedduet.clients.vault.answering.steps import Step
from fedduet.clients.vault.answering.tree import Tree, bound, uct
from fedduet.conf.check import ConfigError, check

FORM = Form(
    prompt=lambda question, steps: "\n".join([question, *steps, ""]),
    answer=lambda text: "".join(text.split()) or None,
    key=int,
)


class Digits:
    """Writes one of its digits, each of as many tokens as `tokens` says; the third digit ends the
    number."""

    def __init__(self, digits, llm=0, tokens=lambda seed: 1, room=1000):
        self.digits, self.llm, self.tokens, self.limit = digits, llm, tokens, room
        self.calls, self.asks, self.granted = 0, [], []

    def room(self, prefix):
        return self.limit - len(prefix)

    def write(self, asks):
        self.calls += 1
        self.asks += asks
        self.granted.append((sum(ask.max_tokens for ask in asks), len(asks)))
        return [self._step(ask) for ask in asks]

    def _step(self, ask):
        count = self.tokens(ask.seed)
        draw = zlib.crc32(f"{ask.seed}".encode())
        digit = self.digits[0] if ask.temperature == 0 else self.digits[draw % len(self.digits)]
        spent = min(count, ask.max_tokens)
        tokens = {"llm_tokens": spent * self.llm, "slm_tokens": spent}
        if count > ask.max_tokens:
            return Step("0", "length", **tokens)
        return Step(digit, "end" if ask.prefix.count("\n") == 3 else "delimiter", **tokens)


class Target:
    """1 / (1 + number of digits that are not the target's), by the steps so far."""

    def __init__(self, target="274", value=None):
        self.target, self.calls, self.states = target, 0, []
        self.value = value or (
            lambda question, steps: (
                1 / (1 + sum(a != b for a, b in zip(steps, target, strict=False)))
            )
        )

    def score(self, states):
        self.calls += 1
        self.states += states
        return [self.value(question, steps) for question, steps in states]


def writers(**named):
    """Private: even digits, greedily 8; collaborative: odd digits, greedily 9."""
    return {"private": Digits("82460"), "collaborative": Digits("97531", llm=1), **named}


def settings(**changes):
    base = {"iterations": 40, "max_steps": 3, "step_tokens": 8, "exploration": 0.3, "parallel": 1}
    return check(SearchConfig, {**base, **changes}, "search")


def solve(config, seed=0, reward=None, question="target?", **named):
    return search_many([question], [seed], writers(**named), reward or Target(), FORM, config)[0]


# ---------------------------------------------------------------- the tree by hand


def test_uct_by_hand():
    assert uct(1.5, 2, 6, 0.5) == pytest.approx(0.75 + 0.5 * math.sqrt(math.log(6) / 2))
    assert uct(1.5, 2, 6, 0.0) == 0.75
    assert uct(0.0, 0, 6, 0.5) == math.inf


def test_selection_and_backpropagation_by_hand():
    tree = Tree(exploration=1.0, score="last", max_depth=4)
    (root,) = tree.select(1)
    first, second = (
        tree.add(root, "a", "private", False),
        tree.add(root, "b", "collaborative", False),
    )
    tree.settle(first, 0.9)
    tree.settle(second, 0.5)
    tree.end_round()
    assert (root.visits, root.total) == (2, 1.4)
    (chosen,) = tree.select(1)
    assert chosen is first  # 0.9 + sqrt(ln 2) against 0.5 + sqrt(ln 2)
    children = [tree.add(first, text, "private", text == "d") for text in "cd"]
    for child, reward in zip(children, (0.1, 0.2), strict=True):
        tree.settle(child, reward)
    tree.end_round()
    assert (root.visits, first.visits, second.visits) == (4, 3, 1)
    assert (root.total, first.total) == (pytest.approx(1.7), pytest.approx(1.2))
    # second: 0.5 + sqrt(ln 4 / 1) = 1.677; first: 0.4 + sqrt(ln 4 / 3) = 1.080, and of its children
    # only c is open
    (chosen,) = tree.select(1)
    assert chosen is second
    assert tree.select(3) == [children[0]] and not tree.nodes[0].open
    tree.reopen(second)
    assert tree.open_leaves() == [second] and tree.path(children[1]) == [root, first, children[1]]


def test_virtual_loss_spreads_a_round():
    def grown():
        tree = Tree(exploration=0.1, score="last", max_depth=4)
        (root,) = tree.select(1)
        for text, reward in (("a", 0.9), ("b", 0.5)):
            tree.settle(tree.add(root, text, "private", False), reward)
        (a,) = tree.select(1)
        for text, reward in (("c", 0.9), ("d", 0.8)):
            tree.settle(tree.add(a, text, "private", False), reward)
        tree.end_round()
        return tree

    names = [[leaf.text for leaf in grown().select(count)] for count in (1, 2, 3)]
    # b: 0.5 + 0.1 sqrt(ln N); a: 2.6 / 3, with one virtual visit 2.6 / 4 = 0.65, with two 2.6 / 5 =
    # 0.52 and d is open still
    assert names == [["c"], ["c", "d"], ["c", "d", "b"]]
    tree = grown()
    for node, visits in zip(tree.nodes, (0, 0, 3, 0, 0), strict=True):
        node.virtual = visits
    assert [leaf.text for leaf in tree.select(1)] == ["c"]
    tree = grown()
    # 2.6 / 6 + 0.1 sqrt(ln 4 / 6) = 0.48 falls below b's 0.5 + 0.1 sqrt(ln 4) = 0.62
    tree.nodes[1].virtual = 3
    assert [leaf.text for leaf in tree.select(1)] == ["b"]


def test_virtual_visits_of_the_parent_count_too():
    # ln 5: 1.117 against 0.984; ln 55: 1.300 against 1.351
    for virtual, chosen in ((0, "a"), (50, "b")):
        tree = Tree(exploration=0.5, score="last", max_depth=4)
        (root,) = tree.select(1)
        for text, visits, total in (("a", 4, 3.2), ("b", 1, 0.35)):
            node = tree.add(root, text, "private", False)
            node.visits, node.total = visits, total
        root.visits, root.virtual = 5, virtual
        assert tree.select(1)[0].text == chosen


@pytest.mark.parametrize(
    ("score", "rewards", "left", "expected"),
    [
        ("last", (0.2, 0.1), 2, 1.0),
        ("min", (0.2, 0.4), 2, 0.2),
        ("product", (0.5, 0.4), 3, 0.2),
        ("mean", (0.5, 0.1), 2, 0.65),
        ("min", (), 2, 1.0),
    ],
)
def test_the_bound_of_a_path(score, rewards, left, expected):
    assert bound(rewards, score, left) == pytest.approx(expected)


# ---------------------------------------------------------------- finding


def test_both_modes_find_what_neither_does_alone():
    greedy = solve(settings(iterations=1, children=1, temperature=0.0, modes="private"))
    # one path, written to its end
    assert greedy.answer == "888" and greedy.score == pytest.approx(1 / 4)
    found = {
        modes: solve(settings(modes=modes, children=4, iterations=60), 1)
        for modes in ("both", "private", "collaborative", "random")
    }
    assert (
        found["both"].answer == "274"
        and found["both"].score == 1.0
        and found["both"].stopped == "settled"
    )
    assert [(step.text, step.mode, step.reward) for step in found["both"].steps] == [
        ("2", "private", 1.0),
        ("7", "collaborative", 1.0),
        ("4", "private", 1.0),
    ]
    # every digit but the other kind's
    assert found["private"].score == 0.5 and found["collaborative"].score == pytest.approx(1 / 3)
    assert {node["mode"] for node in found["private"].nodes[1:]} == {"private"} and found[
        "private"
    ].costs.llm_tokens == 0
    assert {node["mode"] for node in found["collaborative"].nodes[1:]} == {"collaborative"}
    coins = [node["mode"] for node in found["random"].nodes[1:]]
    assert found["random"].answer == "274" and 0.3 < coins.count("private") / len(coins) < 0.7
    assert [found[modes].stopped for modes in ("private", "collaborative")] == ["exhausted"] * 2
    written = [
        solve(settings(modes=modes, iterations=1)).costs.steps
        for modes in ("both", "private", "collaborative", "random")
    ]
    # the same breadth for all, then two steps to finish a path
    assert written == [4 + 2, 4 + 2, 4 + 2, 4 + 2]


def test_every_reward_reaches_the_root():
    reward = Target()
    solution = solve(settings(iterations=9, exploration=1.0, parallel=3), reward=reward)
    nodes = solution.nodes
    assert solution.costs.reward_calls == len(reward.states) == len(nodes) - 1 and len(nodes) > 20
    below = {
        node["number"]: [other for other in nodes if node["number"] in ancestors(nodes, other)]
        for node in nodes
    }
    for node in nodes:
        own = [] if node["parent"] is None else [node]
        assert node["visits"] == len(own + below[node["number"]])
        assert node["total"] == pytest.approx(
            sum(other["reward"] for other in own + below[node["number"]])
        )


def ancestors(nodes, node):
    while node["parent"] is not None:
        node = nodes[node["parent"]]
        yield node["number"]


def test_equal_children_are_merged():
    reward = Target()
    solution = solve(
        settings(iterations=1, children=8, modes="private"), reward=reward, private=Digits("24")
    )
    assert [node["text"] for node in solution.nodes if node["depth"] == 1] in (
        ["2", "4"],
        ["4", "2"],
    )
    assert solution.costs.steps == 16 + 2 and solution.costs.reward_calls == 2 + 2


@pytest.mark.parametrize(
    ("score", "expected"), [("last", "111"), ("min", "222"), ("mean", "333"), ("product", "222")]
)
def test_the_best_path_by_each_score(score, expected):
    rewards = {
        "1": 0.1,
        "11": 0.1,
        "111": 0.95,
        "2": 0.6,
        "22": 0.6,
        "222": 0.6,
        "3": 0.9,
        "33": 0.2,
        "333": 0.9,
    }
    reward = Target(value=lambda question, steps: rewards.get("".join(steps), 0.0))
    solution = solve(
        settings(path_score=score, modes="private", children=6, exploration=2.0),
        reward=reward,
        private=Digits("123"),
    )
    assert solution.answer == expected


def test_votes_merge_equal_numbers():
    rewards = {"7.0": 0.4, "07": 0.4, "9": 0.6}
    reward = Target(value=lambda question, steps: rewards.get("".join(steps), 0.0))
    form = replace(FORM, key=float, final=lambda step: True)
    named = {"private": Digits(["7.0", "07", "9"])}
    config = settings(answer="vote", modes="private", children=8)
    (voted,) = search_many(["?"], [0], named, reward, form, config)
    assert voted.answer == "7.0" or voted.answer == "07"
    (best,) = search_many(
        ["?"], [0], named, reward, form, config.model_copy(update={"answer": "best"})
    )
    assert best.answer == "9" and best.stopped == "exhausted"


# ---------------------------------------------------------------- budgets and stopping


@pytest.mark.parametrize("modes", ["both", "collaborative", "random"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_llm_tokens_never_pass_the_budget(modes, parallel):
    lengths = lambda seed: 1 + seed % 7  # noqa: E731
    for budget in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
        spy = Digits([str(number) for number in range(1000)], llm=1, tokens=lengths)
        never = Target(value=lambda question, steps: 0.5)
        config = settings(
            llm_token_budget=budget,
            modes=modes,
            parallel=parallel,
            iterations=60,
            max_steps=9,
            exploration=1.0,
        )
        solution = solve(config, reward=never, collaborative=spy)
        assert solution.costs.llm_tokens <= budget
        granted = sum(ask.max_tokens for ask in spy.asks)
        assert (granted > 0) == (budget > 0)
        assert solution.costs.llm_tokens == sum(
            min(lengths(ask.seed), ask.max_tokens) for ask in spy.asks
        )
        if modes == "collaborative" and budget:
            # less than a step is left
            assert (
                solution.stopped in ("llm_tokens", "exhausted")
                and budget - solution.costs.llm_tokens < 7
            )
        if modes != "collaborative":
            assert solution.stopped in ("iterations", "exhausted") and solution.answer
        elif budget == 0:
            assert (solution.text, solution.answer, solution.stopped, solution.nodes[1:]) == (
                "",
                None,
                "llm_tokens",
                (),
            )


def test_a_round_is_never_granted_more_than_is_left():
    spy = Digits([str(number) for number in range(1000)], llm=1, tokens=lambda seed: 2)
    solve(
        settings(llm_token_budget=64, modes="collaborative", parallel=4, max_steps=9),
        collaborative=spy,
    )
    spent = 0
    for granted, count in spy.granted:
        assert granted <= 64 - spent
        spent += 2 * count
    assert spent == 64 and len(spy.granted) < 16


def test_a_step_that_the_budget_cut_short_is_not_taken():
    solution = solve(
        settings(llm_token_budget=3, modes="collaborative"),
        collaborative=Digits("97531", llm=1, tokens=lambda seed: 4),
    )
    assert solution.costs.dropped == 1 and solution.costs.llm_tokens == 3 and solution.text == ""
    whole = solve(
        settings(step_tokens=3, modes="collaborative"),
        collaborative=Digits("97531", llm=1, tokens=lambda seed: 4),
    )
    assert whole.text.startswith("0")  # but one that the cap of every step cut is


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 18, 31])
def test_the_number_of_steps_is_kept_exactly(steps):
    flat = Target(value=lambda question, steps: 0.5)
    solution = solve(settings(steps=steps, parallel=4, iterations=60, max_steps=9), reward=flat)
    assert solution.costs.steps == steps and solution.stopped == "steps"
    assert 1 <= len(solution.nodes) - 1 <= steps


def test_seconds_are_checked_before_spending():
    ticks = itertools.count()
    flat = Target(value=lambda question, steps: 0.5)
    named = writers()
    (solution,) = search_many(
        ["?"],
        [0],
        named,
        flat,
        FORM,
        settings(seconds=5, max_steps=9),
        clock=lambda: float(next(ticks)),
    )
    assert solution.stopped == "seconds" and 5 <= solution.seconds <= 8
    assert named["private"].calls <= 5 and flat.calls <= 5


@pytest.mark.parametrize("score", ["last", "min", "mean", "product"])
def test_it_stops_when_nothing_can_change_the_answer(score):
    config = settings(iterations=60, exploration=5.0, path_score=score)
    perfect = solve(config, reward=Target(value=lambda question, steps: 1.0))
    assert perfect.stopped == "settled" and perfect.score == 1.0 and perfect.costs.steps < 30
    # every path starts at 0.5: by min and product no other can do better than one that goes on with
    # 1; by the mean 2.5 / 3 is the best
    start = Target(value=lambda question, steps: 0.5 if len(steps) == 1 else 1.0)
    narrow = solve(config.model_copy(update={"widen": False}), reward=start)
    assert narrow.stopped == "settled" and narrow.costs.steps < 30
    assert narrow.score == pytest.approx(
        {"last": 1.0, "min": 0.5, "mean": 2.5 / 3, "product": 0.5}[score]
    )
    wide = solve(config, reward=start)  # further first steps may have more than 0.5
    assert (wide.stopped == "settled") == (score == "last")
    better = solve(
        config.model_copy(update={"widen": False}), reward=Target(value=lambda question, steps: 0.9)
    )
    # 0.9 can be beaten, but by min it has to be kept from the first step on
    assert (better.stopped == "settled") == (score == "min")


def test_a_vote_stops_when_its_lead_is_out_of_reach():
    form = replace(FORM, final=lambda step: step == "2")  # 4 stays open
    reward = Target(
        value=lambda question, steps: (
            {"2": 1.0, "4": 0.01}["".join(steps)] if len(steps) == 1 else 0.5
        )
    )
    named = {"private": Digits("24")}
    config = settings(answer="vote", modes="private", path_score="product", widen=False)

    def steps(iterations, **changes):
        changed = config.model_copy(update={"iterations": iterations, **changes})
        (solution,) = search_many(["?"], [1], named, reward, form, changed)
        assert solution.answer == "2"
        return solution.stopped, solution.costs.steps

    assert steps(25) == ("settled", 4)  # 24 leaves of 4 children, each worth 0.01 at most: 0.96 < 1
    assert steps(26)[1] > 4  # 25 * 4 * 0.01 is not less than 1
    assert steps(26, steps=103) == ("settled", 4)  # but 99 steps are
    form = replace(FORM, final=lambda step: step in "26")
    reward.value = lambda question, steps: (
        {"2": 1.0, "6": 0.5, "4": 0.01}["".join(steps)] if len(steps) == 1 else 0.5
    )
    named = {"private": Digits("246")}
    # the second answer has 0.5: the lead is 0.5, and 6 * 8 * 0.01 is 0.48
    assert steps(7, children=4) == ("settled", 8)
    assert steps(8, children=4)[1] > 8


# ---------------------------------------------------------------- many questions


def test_the_same_seed_gives_the_same_search():
    config = settings(parallel=3, iterations=6)
    one, two, other = (replace(solve(config, seed), seconds=0) for seed in (5, 5, 6))
    assert one == two and one.nodes != other.nodes


@pytest.mark.parametrize(
    "changes", [{}, {"parallel": 4}, {"modes": "random", "llm_token_budget": 9}, {"answer": "vote"}]
)
def test_many_questions_equal_one_by_one_with_far_fewer_calls(changes):
    config = settings(iterations=5, exploration=1.0, **changes)
    questions, seeds = [f"question {i}" for i in range(12)], list(range(100, 112))
    together, rewards = (
        writers(),
        Target(value=lambda question, steps: zlib.crc32(f"{question}{steps}".encode()) / 2**32),
    )
    many = search_many(questions, seeds, together, rewards, FORM, config)
    alone, calls = [], 0
    for question, seed in zip(questions, seeds, strict=True):
        named = writers()
        alone += search_many([question], [seed], named, Target(value=rewards.value), FORM, config)
        calls += sum(writer.calls for writer in named.values())
    assert [replace(solution, seconds=0) for solution in many] == [
        replace(solution, seconds=0) for solution in alone
    ]
    assert len({solution.answer for solution in many}) > 6
    assert sum(writer.calls for writer in together.values()) * 3 <= calls


def test_parallel_leaves_take_fewer_rounds():
    flat = Target(value=lambda question, steps: 0.5)
    counts = []
    for parallel in (1, 8):
        named = writers()
        search_many(
            ["?"], [0], named, flat, FORM, settings(parallel=parallel, iterations=64, max_steps=9)
        )
        counts.append(named["private"].calls)
    assert counts[0] >= 3 * counts[1]


# ---------------------------------------------------------------- bad input


def test_rewards_that_are_not_numbers_in_0_to_1_count_as_0():
    values = itertools.cycle([float("nan"), -0.5, 1.5, None, 0.25, float("inf")])
    solution = solve(
        settings(iterations=3), reward=Target(value=lambda question, steps: next(values))
    )
    assert {node["reward"] for node in solution.nodes} <= {0.0, 0.25}
    costs = solution.costs
    assert (
        costs.bad_rewards
        == sum(node["reward"] == 0.0 for node in solution.nodes[1:])
        == costs.reward_calls - costs.reward_calls // 6
    )
    assert solution.answer is not None


def test_a_reward_model_must_answer_for_every_state():
    class Short:
        def score(self, states):
            return [0.5]

    with pytest.raises(ValueError, match="sent 1 rewards for 4 states"):
        solve(
            settings(children=2, modes="private"),
            reward=Short(),
            private=Digits("1234567890"),
            seed=3,
        )


def test_questions_that_cannot_be_asked():
    with pytest.raises(ValueError, match="question 1: found an empty text"):
        search_many(["a", " \n"], [0, 1], writers(), Target(), FORM, settings())
    with pytest.raises(
        ValueError,
        match=(
            r"question 0: too long for the models' context; room is left for 4 tokens, a step may"
            r" take 8"
        ),
    ):
        solve(settings(), collaborative=Digits("1", room=20), question="a" * 15)
    with pytest.raises(
        ValueError,
        match="found no writer for the mode 'collaborative'; there are writers for private",
    ):
        search_many(["a"], [0], {"private": Digits("1")}, Target(), FORM, settings())
    private = {"private": Digits("24")}
    assert search_many(["a"], [0], private, Target(), FORM, settings(modes="private"))[0].answer


def test_paths_end_where_the_context_does():
    solution = solve(
        settings(max_steps=50, iterations=50, modes="private"),
        private=Endless("2", room=18),
        question="?",
    )
    # "?", then two characters a step: 8 of 18 stay free up to depth 4
    assert {node["depth"] for node in solution.nodes} == set(range(6))
    assert (
        solution.stopped == "exhausted"
        and solution.answer is None
        and solution.text == "\n".join("22222")
        and not solution.finished
    )


@pytest.mark.parametrize("parallel", [1, 4])
def test_paths_are_no_longer_than_max_steps(parallel):
    solution = solve(
        settings(max_steps=2, parallel=parallel, modes="private"), private=Endless("24")
    )
    assert (
        max(node["depth"] for node in solution.nodes) == 2
        and not solution.finished
        and solution.answer is None
    )
    assert (
        len(solution.nodes) == 1 + 2 + 4
        and solution.stopped == "exhausted"
        and len(solution.steps) == 2
    )


class Endless(Digits):
    """Never ends a number."""

    def _step(self, ask):
        return replace(super()._step(ask), end="delimiter")


def test_a_text_without_an_answer_is_still_returned():
    form = replace(FORM, answer=lambda text: None)
    (solution,) = search_many(["?"], [0], writers(), Target(), form, settings())
    assert solution.answer is None and len(solution.text.split("\n")) == 3 and solution.finished


def test_an_end_without_a_text_ends_the_path_before_it():
    class Quiet(Digits):
        def _step(self, ask):
            return (
                Step("", "end", slm_tokens=1) if ask.prefix.count("\n") == 2 else super()._step(ask)
            )

    solution = solve(settings(modes="private", iterations=4), private=Quiet("2"))
    assert (
        solution.answer == "2"
        and solution.finished
        and [step.reward for step in solution.steps] == [1.0]
    )
    assert solution.costs.reward_calls == 1 and [node["reward"] for node in solution.nodes] == [
        0.0,
        1.0,
        1.0,
    ]
    silent = solve(settings(modes="private"), private=Quiet([""]))
    # one more try
    assert (silent.text, silent.answer, silent.stopped) == (
        "",
        None,
        "exhausted",
    ) and silent.costs.dropped == 8


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"search\.modes: found 'all'"):
        settings(modes="all")
    with pytest.raises(ConfigError, match=r"search\.iterations: found 0"):
        settings(iterations=0)
