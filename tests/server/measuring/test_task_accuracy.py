"""The LLM's own accuracy: the wording of V(x), probabilities against a loop by hand, long texts,
and the examples it learns from."""

import numpy as np
import pytest
from fedduet.conf.check import ConfigError, check
from fedduet.server.measuring.simulated import simulated_splits
from fedduet.server.measuring.task_accuracy import (
    asking,
    label_probabilities,
    llm_accuracy,
    task_examples,
)
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task
from fedduet.tasks.task import Record, Task
from fedduet.tasks.wording.prompts import task_answer, task_prompt
from fedduet.wire.messages import LabelledTexts

from fedduet import conf

WORLD = Task("world", ("negative", "positive"), {"coffee": "coffee"})


@pytest.fixture
def llm(tiny_model):
    from fedduet.server.llm.transformers_engine import TransformersLLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    return TransformersLLM(model, tokenizer, name="tiny", form="completion", context=96)


def test_the_question_in_the_layout_of_the_control_code():
    assert (
        task_prompt(WORLD, "completion", "coffee", "so {good}\n it is")
        == "Product: coffee\nReview: so {good} it is\nRating:"
    )
    assert (
        task_answer(WORLD, "completion", 1) == " positive"
        and task_answer(WORLD, "chat", 1) == "positive"
    )
    news = build_task(check(TaskConfig, conf.compose(["task=ag_news"])["task"], "task"))
    assert task_prompt(news, "completion", "news", "a game") == "News: a game\nTopic:"
    odd = Task("odd", ("a", "b"), {}, control_code="{domain}, {label}:", noun="note")
    assert task_prompt(odd, "completion", "x", "text") == "Note: text\nLabel:"
    ((role, content),) = task_prompt(WORLD, "chat", "coffee", "so good")
    assert (
        role == "user"
        and "so good" in content
        and "negative, positive" in content
        and "coffee" in content
    )


def test_probabilities_are_a_softmax_of_the_labels_log_probabilities(llm):
    texts = ["good coffee", "bad coffee and a {brace}"]
    found = label_probabilities(llm, WORLD, texts, ["coffee", "coffee"])
    for row, text in zip(found, texts, strict=True):
        scores = llm.continuation_logprobs(
            [(task_prompt(WORLD, "completion", "coffee", text), f" {y}") for y in WORLD.labels]
        )
        expected = np.exp(scores) / np.exp(scores).sum()
        assert row == pytest.approx(expected, rel=1e-6) and row.sum() == pytest.approx(1.0)


def test_accuracy_is_by_site(llm):
    probabilities = label_probabilities(
        llm, WORLD, ["good coffee", "bad tea"], ["coffee", "coffee"]
    ).argmax(axis=1)
    records = {
        "b": [
            Record("good coffee", int(probabilities[0])),
            Record("bad tea", 1 - int(probabilities[1])),
        ]
    }
    records["a"] = [Record("bad tea", int(probabilities[1]))]
    task = Task("world", WORLD.labels, {"a": "coffee", "b": "coffee"})
    assert llm_accuracy(llm, task, records) == {"a": 1.0, "b": 0.5}


def test_a_text_longer_than_the_context_is_cut_not_the_question(llm):
    prompt = asking(llm, WORLD, "coffee", "good " * 500)
    assert prompt.endswith("\nRating:") and llm.count_tokens(prompt) <= llm.context
    assert label_probabilities(llm, WORLD, ["good " * 500], ["coffee"]).shape == (1, 2)


def test_examples_carry_label_and_weight(llm):
    data = {"coffee": LabelledTexts(["x", "y"], [1, 0], [0.9, 0.4])}
    first, second = task_examples(WORLD, llm, data)
    assert (first.prompt, first.answer, first.weight) == (
        "Product: coffee\nReview: x\nRating:",
        " positive",
        0.9,
    )
    assert (second.answer, second.weight) == (" negative", 0.4)
    assert task_examples(WORLD, llm, {"coffee": LabelledTexts(["x"], [1])})[0].weight == 1.0


def test_only_a_simulation_has_the_sites_texts():
    task = check(TaskConfig, conf.compose(["task=world", "task.test_rows=40"])["task"], "task")
    splits = simulated_splits(task, "inprocess", 0, 10)
    assert {len(split.test) for split in splits.values()} == {10} and len(splits) == 4
    assert splits == simulated_splits(task, "simulation", 0, 10)
    with pytest.raises(ConfigError, match="only a simulation"):
        simulated_splits(task, "deployment", 0, 10)
