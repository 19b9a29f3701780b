"""Writing new texts with the LLM, in both forms, and the defects of the public code that must not
return."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from fedduet.conf.check import ConfigError
from fedduet.server.llm.scripted import ScriptedLLM
from fedduet.server.writing.augment import AugmentConfig, augment, stops
from fedduet.server.writing.curate import Demonstration
from fedduet.server.writing.shots import ShotQueue
from fedduet.tasks.config import CHAT_AUGMENT, CHAT_SYSTEM
from fedduet.tasks.task import Prompts, Task

TASK = Task(
    "reviews",
    ("negative", "positive"),
    {"a": "kitchen"},
    prompts=Prompts(CHAT_SYSTEM, CHAT_AUGMENT),
)
WORDS = [f"thing{letter}" for letter in "abcdefghijklmnopqrst"]


def fresh(seed):
    """Six words that only this seed gives."""
    return " ".join(f"{WORDS[(seed >> 5 * i) % 20]}{seed % 997}" for i in range(6)) + " ."


def demos(number=6):
    return [
        Demonstration(
            f"demo {label} {i} a{i}{label} b{i}{label} c{i}{label}", label, "kitchen", "a"
        )
        for i in range(number)
        for label in (0, 1)
    ]


def config(**changes):
    return AugmentConfig(
        **{"per_label": 4, "oversample": 1.0, "max_rounds": 1, "shots": 2, **changes}
    )


class Recording(ScriptedLLM):
    """Remembers its requests."""

    def __init__(self, answers, **more):
        super().__init__(answers, **more)
        self.requests = []

    def generate(self, requests, progress=None):
        self.requests += requests
        return super().generate(requests, progress)


class Scoring(Recording):
    """A base LLM for which "good" is nine times likelier in positive texts and "bad" in negative
    ones."""

    def continuation_logprobs(self, pairs, progress=None):
        return [
            math.log(9) * text.split().count("good" if "positive" in prompt else "bad")
            for prompt, text in pairs
        ]


# -- prompts ---------------------------------------------------------------------------------------


def test_completion_prompt_shows_documents_and_ends_in_the_open_control_code():
    """In the public code one prompt template never inserted its samples."""
    llm = Recording(lambda request: fresh(request.seed))
    result = augment(demos(), TASK, llm, "kitchen", config(), 0)
    assert len(result.items) == 8 and len(llm.requests) == 8
    for request, label in zip(llm.requests, [0] * 4 + [1] * 4, strict=True):
        *documents, opening = request.prompt.split("\n\n")
        assert opening == f"Product: kitchen\nRating: {TASK.labels[label]}\nReview:"
        ratings = [document.split("\n")[1].removeprefix("Rating: ") for document in documents]
        assert ratings == [TASK.labels[1 - label], TASK.labels[label]] * 2
        assert all(
            document.split("Review: ")[1].startswith(f"demo {TASK.labels.index(rating)}")
            for document, rating in zip(documents, ratings, strict=True)
        )
        assert request.stop == ("\n\n", "\nProduct:") == stops(TASK)


def test_zero_shot_shows_nothing_and_has_the_same_budget_and_seeds():
    few, zero, empty = (Recording(lambda request: fresh(request.seed)) for _ in range(3))
    augment(demos(), TASK, few, "kitchen", config(), 7)
    result = augment(demos(), TASK, zero, "kitchen", config(), 7, demonstrate=False)
    augment([], TASK, empty, "kitchen", config(), 7)
    assert {request.prompt for request in zero.requests} == {
        f"Product: kitchen\nRating: {label}\nReview:" for label in TASK.labels
    }
    assert zero.requests == empty.requests
    assert [replace(request, prompt="") for request in zero.requests] == [
        replace(request, prompt="") for request in few.requests
    ]
    assert len(result.items) == 8


def test_zero_shot_does_not_depend_on_the_demonstrations_in_any_way():
    copied = demos()[1].text
    with_them = augment(
        demos(),
        TASK,
        ScriptedLLM(lambda request: copied),
        "kitchen",
        config(),
        0,
        demonstrate=False,
    )
    assert copied in {item.text for item in with_them.items}


def test_prompts_are_cut_in_tokens_at_whole_demonstrations():
    """The public code cut prompts at 2,048 characters."""
    long = [
        Demonstration(f"long{i} " + "extraordinarily " * 400, label, "kitchen", "a")
        for i in range(3)
        for label in (0, 1)
    ]
    llm = Recording(lambda request: fresh(request.seed), context=1200)
    result = augment(
        long, TASK, llm, "kitchen", config(shots=3, shot_tokens=300, max_new_tokens=90), 0
    )
    for request in llm.requests:
        assert len(request.prompt) > 2048 and request.prompt.endswith("Review:")
        assert llm.count_tokens(request.prompt) + request.max_new_tokens <= 1200
        assert request.prompt.count("long") == 3  # 305 tokens each
    assert result.counts["shots_left_out"] == 3 * 8 and "failed" not in result.counts


def test_a_context_too_small_for_the_bare_prompt_is_said_once_and_clearly():
    with pytest.raises(
        ConfigError,
        match=(
            r"max_new_tokens: scripted has a context of 6 tokens, and the completion prompt has 5"
            r" tokens"
        ),
    ):
        augment(demos(), TASK, ScriptedLLM([], context=6), "kitchen", config(), 0)


def test_every_demonstration_is_shown_once_before_any_is_shown_twice():
    queue = ShotQueue(demos(5), 2, seed=3)
    shown = [one.text for _ in range(10) for one in queue.draw(1, 2)]
    for start in range(0, 20, 5):
        # 2 does not divide 5: a draw may span two passes
        assert len(set(shown[start : start + 5])) == 5
    assert all(shown[i] != shown[i + 1] for i in range(0, 20, 2))
    assert shown[:5] != shown[5:10] or shown[5:10] != shown[10:15]
    assert len(queue.draw(0, 9)) == 5
    assert [one.label for one in queue.draw_for(0, 2)] == [1, 0, 1, 0]


# -- chat form -------------------------------------------------------------------------------------


def test_chat_asks_for_several_at_once_and_checks_their_labels():
    def answer(request):
        wanted = (
            "positive" if "whose label is positive" in request.prompt[-1].content else "negative"
        )
        lines = [
            f"{wanted}: {fresh(request.seed)}",
            f"{wanted}: {fresh(request.seed + 31)}",
            "neutral: who knows what this is about",
            f"1: {fresh(request.seed + 77)}",
        ]
        return "\n".join(lines)

    llm = Recording(answer, form="chat")
    result = augment(demos(), TASK, llm, "kitchen", config(per_request=2), 0)
    assert len(llm.requests) == 4 and llm.requests[0].max_new_tokens == 2 * 96
    assert [turn.role for turn in llm.requests[0].prompt] == ["system", "user"]
    assert (
        "demo 0 " in llm.requests[0].prompt[1].content
        and "demo 1 " in llm.requests[0].prompt[1].content
    )
    assert Counter(item.label for item in result.items) == {0: 4, 1: 4}
    # "1" names positive: wrong where negative was asked for
    assert result.counts["wrong_label"] == 2 and result.counts["surplus"] == 2


def test_unreadable_answers_give_an_empty_list_with_counts():
    nothing = augment(
        demos(),
        TASK,
        ScriptedLLM(lambda request: "Sure:", form="chat"),
        "kitchen",
        config(max_rounds=2),
        0,
    )
    assert (
        nothing.items == ()
        and nothing.counts["unreadable"] == nothing.counts["requests"] == 4
        and nothing.counts["missing"] == 8
    )
    silent = augment(demos(), TASK, ScriptedLLM(lambda request: " "), "kitchen", config(), 0)
    assert silent.items == () and silent.counts["unreadable"] == 8
    failed = augment(demos(), TASK, ScriptedLLM([]), "kitchen", config(max_rounds=3), 0)
    assert failed.items == () and failed.counts["failed"] == 8 and failed.counts["rounds"] == 1


# -- choosing --------------------------------------------------------------------------------------


def test_copies_of_demonstrations_and_of_each_other_are_dropped_and_asked_for_again():
    copied = demos()[0].text
    answers = iter(
        [
            copied.upper(),
            "a new pan that is big",
            "A new  pan that is big!",
            "short one",
            *(fresh(i * 9_000_001) for i in range(1, 99)),
        ]
    )
    llm = Recording(lambda request: next(answers))
    result = augment(demos(), TASK, llm, "kitchen", config(max_rounds=2), 0)
    assert result.counts["near_copy"] == 2 and result.counts["rule_too_short"] == 1
    assert result.counts["rounds"] == 2 and result.counts["requests"] == 8 + 3
    assert (
        Counter(item.label for item in result.items) == {0: 4, 1: 4}
        and result.counts["missing"] == 0
    )
    dropped = sum(
        v
        for k, v in result.counts.items()
        if k.startswith("rule_") or k in ("near_copy", "wrong_label", "off_label", "surplus")
    )
    assert result.counts["texts"] == result.counts["kept"] + dropped


def test_texts_that_hit_the_limit_are_cut_back_to_a_sentence_end():
    """The public code trained without EOS, so that generation never stopped."""
    answer = lambda request: f"{fresh(request.seed)} and then it went on and on"  # noqa: E731
    result = augment(demos(), TASK, ScriptedLLM(answer), "kitchen", config(max_new_tokens=9), 0)
    assert all(item.text.endswith(" .") for item in result.items) and result.counts["cut"] == 8


def test_the_likeliest_of_an_oversample_are_taken_with_soft_labels():
    def answer(request):
        telling = (
            ["good good", "good", "", "bad"][request.seed % 4]
            if "positive" in request.prompt
            else "bad"
        )
        return f"{telling} {fresh(request.seed)}"

    result = augment(
        [],
        TASK,
        Scoring(answer),
        "kitchen",
        config(per_label=10, oversample=4.0, soft_labels=True),
        0,
    )
    positive = [item for item in result.items if item.label == 1]
    good = [item.text.split().count("good") for item in positive]
    assert (
        len(positive) == 10
        and good == sorted(good, reverse=True)
        and good[0] == 2
        and "bad" not in " ".join(i.text for i in positive)
    )
    assert positive[0].soft_label == pytest.approx((1 / 82, 81 / 82)) and positive[0].weight == 1.0
    assert result.counts["off_label"] > 0 and result.counts["surplus"] > 0
    hard = augment([], TASK, Scoring(answer), "kitchen", config(per_label=10, oversample=4.0), 0)
    assert [item.text for item in hard.items] == [
        item.text for item in result.items
    ] and hard.items[0].soft_label is None


def test_the_same_seed_repeats_and_another_differs():
    def run(seed):
        return augment(
            demos(),
            TASK,
            ScriptedLLM(lambda request: fresh(request.seed)),
            "kitchen",
            config(),
            seed,
        )

    assert run(1) == run(1)
    assert {item.text for item in run(1).items}.isdisjoint(item.text for item in run(2).items)
    llm = Recording(lambda request: fresh(request.seed))
    augment(demos(), TASK, llm, "kitchen", config(), 1)
    augment(demos(), TASK, llm, "toys", config(), 1)
    assert len({request.seed for request in llm.requests}) == 16
