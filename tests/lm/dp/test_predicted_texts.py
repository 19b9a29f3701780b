"""Labelled texts by private prediction: what a prompt looks like, where it is cut, what a release
costs, and that private texts show where nothing clips them."""

from __future__ import annotations

import math

import pytest
from fedduet.lm.decoding.stepper import stepper
from fedduet.lm.dp.predicted_texts import (
    Predicting,
    line_breaks,
    list_prompt,
    predict_texts,
    public_examples,
)
from fedduet.lm.dp.private_prediction import NoisyArgmax, cost
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.randomness import SeededNoise

HEADINGS = ["Examples (negative):", "Examples (positive):"]


@pytest.fixture(scope="module")
def model(tiny_model):
    tokenizer = load_tokenizer(tiny_model, generates=True)
    return stepper(load_causal_lm(tiny_model, tokenizer=tokenizer)), tokenizer


def asked(**changes) -> Predicting:
    small = {"rho": 1.0, "units": 40, "labels": 2, "per_label": 3, "tokens": 5, "prompt_tokens": 48}
    return Predicting(**(small | {"top_k": 30} | changes))


def test_a_prompt_is_a_list_with_an_open_item():
    assert list_prompt("Notes:", ["one\n two", "a<|endoftext|>b"]) == (
        "Notes:\n- one two\n- a b\n-"
    )


def test_public_numbers_of_a_release():
    made = asked(units=100, batches=5, per_label=12)
    # of 10 expected ones, 10 + 2 sqrt(10); five batches of three texts make twelve and more
    assert (made.divisor, made.room, made.texts) == (10, 17, 3)
    assert asked(contexts=7).divisor == 7 and asked(units=1).divisor == 1
    for rule in ("clipped", "argmax"):
        one = asked(rule=rule, rho=0.9)
        assert cost(one.made_rule(), 5, 3) == pytest.approx(0.9)
    assert isinstance(asked(rule="argmax").made_rule(), NoisyArgmax)
    assert asked(rho=math.inf).made_rule().clip == 1e6


def test_line_breaks_are_known_and_end_a_text(model):
    run, tokenizer = model
    breaks = line_breaks(tokenizer)
    assert {*tokenizer("\n", add_special_tokens=False)["input_ids"]} <= breaks
    assert not breaks & {*tokenizer("a fine cup", add_special_tokens=False)["input_ids"]}
    everything = frozenset(range(len(tokenizer)))
    found = predict_texts(run, tokenizer, HEADINGS, {}, asked(), everything, SeededNoise(0))
    assert found == [[("", True)] * 3] * 2


def test_long_lists_lose_their_end_and_still_open_an_item(model):
    run, tokenizer = model
    contexts = {(0, 0): [["a very long text about a cup " * 30]]}
    wide = asked(prompt_tokens=20)
    found = predict_texts(run, tokenizer, HEADINGS, contexts, wide, frozenset(), SeededNoise(0))
    assert [len(texts) for texts in found] == [3, 3]


def test_labels_get_their_own_contexts_and_the_batches_of_a_label_its_texts(model, monkeypatch):
    from fedduet.lm.dp import predicted_texts

    run, tokenizer = model
    seen, write = [], predicted_texts.write_texts

    def watched(run, batches, *rest):
        seen.extend(batches)
        return write(run, batches, *rest)

    monkeypatch.setattr(predicted_texts, "write_texts", watched)
    contexts = {(0, 0): [["first"]], (1, 1): [["second"], ["third", "fourth"]]}
    made = asked(batches=2, per_label=3)
    examples = [["shown"], ["told"]]
    found = predict_texts(
        run, tokenizer, HEADINGS, contexts, made, frozenset(), SeededNoise(0), examples
    )
    assert [len(texts) for texts in found] == [3, 3]
    assert {len(batch.contexts) for batch in seen} == {made.room} == {17}
    shown = [
        [tokenizer.decode(list(prompt)) for prompt in (batch.public, *filter(None, batch.contexts))]
        for batch in seen
    ]
    assert shown == [
        ["Examples (negative):\n- shown\n-", "Examples (negative):\n- shown\n- first\n-"],
        ["Examples (negative):\n- shown\n-"],
        ["Examples (positive):\n- told\n-"],
        ["Examples (positive):\n- told\n-", "Examples (positive):\n- told\n- second\n-",
         "Examples (positive):\n- told\n- third\n- fourth\n-"],
    ]  # fmt: skip


def test_public_examples_are_the_same_whatever_is_private(model):
    run, tokenizer = model
    long, ends = asked(tokens=40, prompt_tokens=32), frozenset(range(0, len(tokenizer), 6))
    first, again = (
        public_examples(run, tokenizer, HEADINGS, 2, long, ends, SeededNoise(1)) for _ in range(2)
    )
    assert first == again and len(first) == 2 and any(first)
    assert all(len(texts) <= 2 and len({*texts}) == len(texts) for texts in first)
    assert public_examples(run, tokenizer, HEADINGS, 0, long, frozenset(), SeededNoise(1)) == [
        [],
        [],
    ]
