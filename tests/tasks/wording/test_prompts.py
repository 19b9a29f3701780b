"""Prompts and the reading of answers: golden texts, budgets in tokens, braces, and the known
defects of other code."""

from __future__ import annotations

import pytest
from fedduet.tasks.config import CHAT_AUGMENT, CHAT_JUDGE, CHAT_SYSTEM
from fedduet.tasks.task import Prompts, Record, Task
from fedduet.tasks.wording.prompts import (
    augment_prompt,
    fill,
    judge_prompt,
    parse_generated,
    parse_judgement,
)
from hypothesis import given, settings
from hypothesis import strategies as st

TASK = Task(
    "t",
    ("negative", "positive"),
    {"a": "kitchen"},
    prompts=Prompts(CHAT_SYSTEM, CHAT_AUGMENT, CHAT_JUDGE, ""),
)
DEMONSTRATIONS = (Record("it broke", 0, "kitchen"), Record("i love\n\nthis pan", 1, "kitchen"))


def words(text: str) -> int:
    """White-space words: a token count that is easy to do by hand."""
    return len(text.split())


def ask(
    form: str,
    demonstrations=DEMONSTRATIONS,
    label: int = 1,
    budget: int = 10_000,
    task: Task = TASK,
    n: int = 3,
):
    return augment_prompt(task, form, "kitchen", label, demonstrations, n, words, budget)[0]


# --- wording --------------------------------------------------------------------------------------


def test_completion_form_is_documents_and_an_open_control_code():
    assert (
        ask("completion") == "Product: kitchen\nRating: negative\nReview: it broke\n\n"
        "Product: kitchen\nRating: positive\nReview: i love this pan\n\n"
        "Product: kitchen\nRating: positive\nReview:"
    )
    assert ask("completion", ()) == "Product: kitchen\nRating: positive\nReview:"


def test_the_demonstrations_are_laid_out_as_the_generator_is_trained():
    assert ask("completion").startswith(TASK.control("kitchen", 0) + "it broke\n\n")


def test_chat_form_holds_the_samples_the_scale_and_the_number():
    (system, said), (user, asked) = ask("chat")
    assert (system, user) == ("system", "user")
    assert said == "You write realistic reviews that serve as training data for a text classifier."
    assert (
        asked
        == """Domain: kitchen
Labels, in order: negative, positive

Examples, one per line as `label: text`:
negative: it broke
positive: i love this pan

Write 3 new reviews about kitchen whose label is positive. Vary topic, wording and length as the examples do. Do not copy \
the examples or one another.
Answer with exactly 3 lines and nothing else. Each line is one review in the form
positive: text"""
    )
    assert "\n(none)\n" in ask("chat", ())[1][1]


def test_judge_prompt_numbers_the_members_from_zero():
    ((role, asked),) = judge_prompt(TASK, "chat", "kitchen", DEMONSTRATIONS)
    assert role == "user"
    assert "\n0. negative: it broke\n1. positive: i love this pan\n" in asked
    assert (
        judge_prompt(TASK, "completion", "kitchen", DEMONSTRATIONS)
        == asked + "\n\nNumbers to keep: ["
    )


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="prompt form: found 'base'; allowed: chat, completion"):
        ask("base")
    with pytest.raises(ValueError, match="label index: found 2; allowed: 0 to 1"):
        ask("chat", label=2)


BRACES = "{domain} {0} {} }{ %s $x {{label}} {examples}"


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_braces_in_a_text_stay_as_they_are(form):
    prompt = ask(form, (Record(BRACES, 0, "kitchen"),))
    assert BRACES in (prompt if form == "completion" else prompt[1][1])
    judged = judge_prompt(TASK, form, BRACES, (Record(BRACES, 0),))
    assert (judged if form == "completion" else judged[0][1]).count(BRACES) >= 2


@given(st.text(), st.text())
def test_fill_replaces_once_and_only_what_it_knows(first, second):
    assert fill("{a}|{b}|{c}|{a}", a=first, b=second) == f"{first}|{second}|{{c}}|{first}"


# --- defects of the public FATE-LLM code (METHODS.md) ---------------------------------------------


@pytest.mark.parametrize("form", ["chat", "completion"])
@pytest.mark.parametrize("label", [0, 1])
def test_every_template_inserts_its_samples(form, label):
    samples = [
        Record(f"sample number {i} says {'yes' if i % 2 else 'no'}", i % 2, "kitchen")
        for i in range(6)
    ]
    prompt = ask(form, samples, label)
    text = prompt if form == "completion" else "\n".join(content for _, content in prompt)
    assert all(text.count(sample.text) == 1 for sample in samples)
    judged = judge_prompt(TASK, form, "kitchen", samples)
    assert all(sample.text in str(judged) for sample in samples)


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_a_prompt_is_never_cut_at_2048_characters(form):
    samples = [
        Record(f"{i} " + "extraordinarily " * 100 + f"end{i}", i % 2, "kitchen") for i in range(4)
    ]
    text = str(ask(form, samples))
    assert len(text) > 6_400
    assert all(f"end{i}" in text for i in range(4))


@pytest.mark.parametrize("form", ["chat", "completion"])
def test_demonstrations_over_the_budget_are_left_out_whole(form):
    samples = [Record(f"start{i} " + "word " * 20 + f"end{i}", i % 2, "kitchen") for i in range(8)]
    bare = (
        words(ask(form, ()))
        if form == "completion"
        else sum(words(turn[1]) + 8 for turn in ask(form, ()))
    )
    # words of one demonstration, its label included, and one to join
    each = 28 if form == "completion" else 24
    _, shown = augment_prompt(TASK, form, "kitchen", 1, samples, 3, words, bare + 3 * each)
    # the wanted label first, in turn
    assert [record.text.split()[0] for record in shown] == ["start0", "start1", "start3"]
    text = str(ask(form, samples, budget=bare + 3 * each))
    assert all((f"start{i}" in text) == (f"end{i}" in text) == (i in (0, 1, 3)) for i in range(8))
    with pytest.raises(
        ValueError,
        match=rf"has {bare} tokens without any demonstration, more than the budget of {bare - 1}",
    ):
        ask(form, samples, budget=bare - 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=60), st.integers(0, 1)), max_size=8),
    st.integers(150, 500),
    st.sampled_from(["chat", "completion"]),
)
def test_no_prompt_is_longer_than_its_budget(pairs, budget, form):
    def characters(text: str) -> int:  # tokens of a byte-level tokenizer without merges
        return len(text.encode("utf-8", "replace"))

    budget += 600 if form == "chat" else 0
    samples = [Record(text, label, "kitchen") for text, label in pairs]
    prompt, _ = augment_prompt(TASK, form, "kitchen", 0, samples, 2, characters, budget)
    used = (
        characters(prompt)
        if isinstance(prompt, str)
        else sum(characters(content) + 8 for _, content in prompt)
    )
    assert used <= budget


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[0, 2]", [0, 2]), ("0, 2]", [0, 2]), ("0, 2", [0, 2]), ("[2,0,2]", [0, 2]), ("The answer is [0, 2].", [0, 2]),
        ('["0", "2"]', [0, 2]), ("[0.0, 2.0]", [0, 2]), ("```json\n[0, 2]\n```", [0, 2]), ("<think>[1]</think>[0, 2]", [0, 2]),
        ('{"keep": [0, 2]}', [0, 2]), ('{"keep": 2, "why": [1]}', [2]), ('{"drop": [1]}', [0, 2]),
        ('{"0": true, "1": false, "2": true}', [0, 2]), ("[true, false, true]", [0, 2]), ("0: keep\n1: drop\n2: keep", [0, 2]),
        ("0: drop\n1: drop\n2: drop", []), ("keep: 0 and 2", [0, 2]), ("Keep numbers 0, 2.", [0, 2]),
        ("I would keep 0 and 2 because 1 is off topic", [0, 2]), ("Drop [1], keep [0, 2]", [0, 2]), ("Drop [1]", [0, 2]),
        ("[]", []), ("]", []), ("none", []), ("None of them.", []), ("Keep: none", []), ("all", [0, 1, 2]), ("2", [2]),
        ("[0, 9]", [0]), ("[7]", None), ("[-1]", None), ("[0.5]", None), ("", None), ("hello", None), ("0. good is fine", None),
        ("do not keep 1", None), ("Sorry, 3 of these are bad", None), ("[true]", None), ("{}", None), ("[" * 5000, None),
    ],
)  # fmt: skip
def test_judgements_are_read_and_unreadable_is_none(answer, expected):
    """`[0, 2]` must not drop the group; what cannot be read is None, so that the caller keeps the
    group and counts it."""
    assert parse_judgement(answer, 3) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [("1.0", 1), (1.0, 1), ("10.0", None), (10.0, None), ("1.5", None), ("0", 0), ("-1", None), (True, None), (None, None),
     ("POSITIVE", 1), (" negative ", 0), ("positively", None), (float("nan"), None), (float("inf"), None), (10**400, None),
     ("\u00b2", None)],
)  # fmt: skip
def test_a_float_label_is_not_read_by_its_first_character(label, expected):
    from fedduet.tasks.wording.parse import label_index

    assert label_index(TASK, label) == expected


def test_float_labels_in_an_answer():
    answer = (
        '[{"label": 1.0, "text": "a"}, {"label": 10.0, "text": "b"}, {"label": 0.9, "text": "c"},'
        ' {"label": "0.0", "text": "d"}]'
    )
    assert parse_generated(TASK, "chat", answer, 1) == [("a", 1), ("d", 0)]


# --- generated texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("positive: works well\nnegative: broke", [("works well", 1), ("broke", 0)]),
        ("1. positive: one\n2) negative: two\n(3) neutral: three", [("one", 1), ("two", 0)]),
        ("- one\n* two\n\u2022 three", [("one", 1), ("two", 1), ("three", 1)]),
        ("Sure! Here are 2 reviews:\n\n- **positive:** It's great\n- **Negative**: Bad\n\nHope it helps!", [("It's great", 1), ("Bad", 0)]),
        ("Sure, here you go:\n1. one\n2. two", [("one", 1), ("two", 1)]),
        ('```json\n[{"label": "positive", "text": "hi {x}"}, {"label": "neutral", "text": "no"}]\n```', [("hi {x}", 1)]),
        ('{"reviews": [{"review": "a b", "rating": "Negative"}]}', [("a b", 0)]),
        ('{"positive": ["x y", "z"], "negative": "w"}', [("x y", 1), ("z", 1), ("w", 0)]),
        ('{"label": "positive", "text": "a"}\n{"label": "negative", "text": "b"}', [("a", 1), ("b", 0)]),
        ('["a", "b"]', [("a", 1), ("b", 1)]),
        ('[["positive", "x"], ["y", 0]]', [("x", 1), ("y", 0)]),
        ('[{"label": 1, "text": "whole"}, {"label": 1, "text": "cut o', [("whole", 1)]),
        ('{"text": "a"', []),
        ("Label: positive\nText: \"I like\"\n\nRating: negative\nReview: no", [("I like", 1), ("no", 0)]),
        ("[positive] works\n(negative) broke\npositive - fine", [("works", 1), ("broke", 0), ("fine", 1)]),
        ("0: broke\n1: works\n0: bad", [("broke", 0), ("works", 1), ("bad", 0)]),
        ("1: one\n2: two", [("one", 1), ("two", 1)]),
        ('"It works."\n\u201cFine.\u201d', [("It works.", 1), ("Fine.", 1)]),
        ('positive: "mostly fine: it works"', [("mostly fine: it works", 1)]),
        ("It works well: I tried.\nSecond one.", [("It works well: I tried.", 1), ("Second one.", 1)]),
        ("Positive feelings came up", [("Positive feelings came up", 1)]),
        ("neutral: so so", []),
        ("10: ten", []),
        ("positive:", []),
        ("", []),
        ("<think>negative: hm</think>positive: yes", [("yes", 1)]),
    ],
)  # fmt: skip
def test_chat_answers_are_read(answer, expected):
    assert parse_generated(TASK, "chat", answer, 1) == expected


def test_completion_answers_end_at_the_blank_line_and_later_documents_keep_their_label():
    answer = (
        " works\nwell\n\nProduct: kitchen\nRating: negative\nReview: no good\n\nnoise\nProduct:"
        " b\nRating: neutral\nReview: hm"
    )
    assert parse_generated(TASK, "completion", answer, 1) == [("works well", 1), ("no good", 0)]
    assert parse_generated(TASK, "completion", "\n\n", 1) == []


def test_labels_of_several_words_and_with_signs():
    task = Task("t", ("very negative", "neutral", "C++ (good)"), {"a": "a"})
    answer = "Very Negative: a\nneutral: b\nC++ (good): c\nnegative: d"
    assert parse_generated(task, "chat", answer, 1) == [("a", 0), ("b", 1), ("c", 2)]


def test_what_was_asked_for_is_what_is_read():
    """An LLM that follows the format is read without loss, in both forms."""
    samples = [
        Record(f"the {word} is fine: really", i % 2, "kitchen")
        for i, word in enumerate(["pan", "pot", "lid"])
    ]
    answer = "\n".join(f"{TASK.labels[record.label]}: {record.text}" for record in samples)
    assert parse_generated(TASK, "chat", answer, 0) == [
        (record.text, record.label) for record in samples
    ]
    prompt = ask("completion", samples)
    assert parse_generated(TASK, "completion", "\n\n" + prompt, 0)[:3] == [
        (r.text, r.label) for r in samples
    ]


PIECES = st.lists(
    st.sampled_from([*'[]{}":,.-*#`0129\n \t', "positive", "negative", "label", "text", "keep", "drop", "not ", "and", "none",
        "```", "<think>", "Review:", "Product: x\nRating: positive\nReview: y\n\n", "1e999", "NaN", "\u0660", "\u00b2", "true"]),
    max_size=40,
).map("".join)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(PIECES, st.text(max_size=200)), st.integers(0, 1), st.integers(0, 5))
def test_reading_never_raises_and_never_invents_labels_or_members(answer, label, n):
    for form in ("chat", "completion"):
        for text, index in parse_generated(TASK, form, answer, label):
            assert index in (0, 1)
            assert text == text.strip() != ""
            assert "\n" not in text
    kept = parse_judgement(answer, n)
    assert kept is None or (kept == sorted(set(kept)) and all(0 <= member < n for member in kept))


HOSTILE = (
    "0, " * 20_000 + "x", '{"a":' * 20_000, "[[" * 20_000, "positive " * 20_000, "((((" * 20_000, " \n" * 20_000, ". \n" * 20_000,
    "[1] " + "drop " * 20_000, "keep " * 20_000, "1 " * 20_000, "a:" * 20_000, '"' * 40_000, "[]" * 20_000, "<think>" * 9_000,
    "a" + "\n " * 20_000 + "b", "Product: " * 20_000, "1: x\n" * 20_000,
)  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_take_no_time(answer):
    import time

    start = time.perf_counter()
    parse_judgement(answer, 3)
    parse_generated(TASK, "chat", answer, 0)
    parse_generated(TASK, "completion", answer, 0)
    assert time.perf_counter() - start < 2
