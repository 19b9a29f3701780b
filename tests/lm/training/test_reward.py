"""Reward models: labels by completions, both trained forms, the public formats, and training that
answers are learnt from."""

import json

import pytest
import torch
from fedduet.conf.check import ConfigError
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.training.causal import encode_pairs, train_causal
from fedduet.lm.training.config import RewardConfig, SLMConfig
from fedduet.lm.training.reward import LIKELIHOOD, StepRewards
from fedduet.lm.training.reward_training import RewardTraining, fit_likelihood, train_reward
from fedduet.lm.training.step_labels import LabelledSolution, label_steps
from fedduet.lm.training.tune import answer_logprobs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

GOOD, BAD = "very good", "so bad"


def word(question, steps):
    return "".join(f"{line}\n" for line in (question, *steps))


def test_a_step_is_good_when_something_right_can_follow_it():
    """Solutions 'x', 'a|b' and 'a|c|d': only texts that end in b or d are right; after 'a' a
    completion says d."""
    drawn = iter([["x", "a\nb", "a\nc\nd", ""]])
    asked = []

    def complete(prompts, seed):
        asked.extend(prompts)
        return ["d" if text == "q\na\n" else "x" for text in prompts]

    found = label_steps(
        ["q"],
        lambda _, steps: word("q", steps),
        lambda _, text: text[-1:] in "bd",
        lambda prompts, seed: next(drawn),
        complete,
        4,
        2,
        0,
    )
    assert found == [
        LabelledSolution(0, ("x",), (False,)),
        LabelledSolution(0, ("a", "b"), (True, True)),
        # nothing right followed "a c" when completed
        LabelledSolution(0, ("a", "c", "d"), (True, False, False)),
    ]
    assert asked == ["q\na\n"] * 2 + ["q\na\nc\n"] * 2


@pytest.fixture(scope="module")
def solutions():
    """Good and bad steps in many places; a bad one makes all after it bad."""
    kinds = [
        (GOOD,),
        (BAD,),
        (GOOD, GOOD),
        (GOOD, BAD),
        (BAD, GOOD),
        (GOOD, GOOD, BAD),
        (GOOD, GOOD, GOOD),
    ]
    return [
        LabelledSolution(n % 3, steps, tuple(BAD not in steps[: i + 1] for i in range(len(steps))))
        for n, steps in enumerate(kinds * 6)
    ]


QUESTIONS = ["the coffee is", "the tent is", "it was"]


def test_a_trained_head_tells_good_steps_from_bad_ones(tiny_model, solutions, tmp_path):
    settings = RewardTraining(learning_rate=3e-3, steps=60, batch_size=8)
    folder = train_reward(tiny_model, QUESTIONS, solutions, word, tmp_path / "reward", settings)
    model = StepRewards(RewardConfig(path=str(folder)), word)
    states = [
        ("the mug is", (GOOD,)),
        ("the mug is", (GOOD, GOOD)),
        ("the mug is", (BAD,)),
        ("the mug is", (GOOD, BAD)),
    ]
    rewards = model.score(states)
    assert (
        min(rewards[:2]) > 0.7
        and max(rewards[2:]) < 0.3
        and all(0 <= reward <= 1 for reward in rewards)
    )
    # batches do not matter
    assert model.score(states[::-1]) == pytest.approx(rewards[::-1], abs=1e-5)
    again = train_reward(tiny_model, QUESTIONS, solutions, word, tmp_path / "again", settings)
    assert StepRewards(RewardConfig(path=str(again)), word).score(states) == pytest.approx(
        rewards, abs=1e-4
    )


def test_one_kind_of_label_teaches_nothing_and_says_so(tiny_model, tmp_path):
    only = [LabelledSolution(0, (GOOD,), (True,))]
    for train in (lambda: train_reward(tiny_model, QUESTIONS, only, word, tmp_path / "r", RewardTraining(steps=1)),
                  lambda: fit_likelihood(tiny_model, QUESTIONS, only, word, tmp_path / "r")):  # fmt: skip
        with pytest.raises(ValueError, match="all 1 labelled steps are good"):
            train()


def test_likelihoods_are_calibrated_and_rise(tiny_model, tmp_path):
    """The LM is trained to write one step after every question; steps that it would write are
    labelled good."""
    tokenizer = load_tokenizer(tiny_model, generates=True)
    settings = SLMConfig(
        path=str(tiny_model), learning_rate=1e-2, batch_size=4, min_steps=60, max_steps=60
    )
    pairs = [(f"{question}\n", f"{GOOD}\n") for question in QUESTIONS]
    model, steps = train_causal(
        load_causal_lm(tiny_model, tokenizer=tokenizer), tokenizer, pairs, settings
    )
    assert steps == 60
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    labelled = [
        LabelledSolution(n, (text,), (text == GOOD,))
        for n in range(3)
        for text in (GOOD, BAD, "the cord broke")
    ]
    folder = fit_likelihood(tmp_path / "lm", QUESTIONS, labelled, word, tmp_path / "reward")
    good, bad = StepRewards(RewardConfig(path=str(folder), form="likelihood"), word).score(
        [("it was", (GOOD,)), ("it was", (BAD,))]
    )
    assert good > 0.9 and bad < 0.1
    (folder / LIKELIHOOD).write_text(json.dumps({"lowest": [0, -1], "good": [0, 1]}))
    with pytest.raises(ConfigError, match="the first rising"):
        StepRewards(RewardConfig(path=str(folder), form="likelihood"), word).score(
            [("it was", (GOOD,))]
        )


def test_a_head_that_is_not_a_number_is_passed_on_for_the_search_to_count(
    tiny_model, solutions, tmp_path
):
    folder = train_reward(
        tiny_model, QUESTIONS, solutions, word, tmp_path / "reward", RewardTraining(steps=1)
    )
    model = AutoModelForTokenClassification.from_pretrained(folder)
    torch.nn.init.constant_(model.score.weight, float("nan"))
    model.save_pretrained(folder)
    (reward,) = StepRewards(RewardConfig(path=str(folder)), word).score([("it was", (GOOD,))])
    assert reward != reward


def test_math_shepherd_reads_the_two_words_at_the_tag(tiny_model):
    config = RewardConfig(path=str(tiny_model), form="math_shepherd", tag="!", good="+", bad="-")
    (reward,) = StepRewards(config, word).score([("q", ("one", "two"))])
    tokenizer = load_tokenizer(tiny_model)
    ids = torch.tensor([tokenizer("q one !\ntwo !")["input_ids"]])
    logits = load_causal_lm(tiny_model)(input_ids=ids).logits[0, -1]
    good, bad = (tokenizer(sign, add_special_tokens=False)["input_ids"][-1] for sign in "+-")
    assert reward == pytest.approx(float(torch.sigmoid(logits[good] - logits[bad])), abs=1e-5)


def test_the_head_of_qwens_reward_model_is_read_without_its_code(tiny_model, tmp_path):
    tokenizer, model = load_tokenizer(tiny_model), load_causal_lm(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "prm")
    tokenizer.save_pretrained(tmp_path / "prm")
    weights = load_file(tmp_path / "prm" / "model.safetensors")
    torch.manual_seed(0)
    head = {
        "score.0.weight": torch.randn(32, 32),
        "score.0.bias": torch.randn(32),
        "score.2.weight": torch.randn(2, 32),
    }
    head["score.2.bias"] = torch.randn(2)
    save_file(weights | head, tmp_path / "prm" / "model.safetensors", {"format": "pt"})
    (reward,) = StepRewards(RewardConfig(path=str(tmp_path / "prm"), form="qwen"), word).score(
        [("q", ("one", "two"))]
    )
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    text = f"system: {system}\nuser: q\nassistant: one<extra_0>two<extra_0>"
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
    inner = torch.relu(head["score.0.weight"] @ hidden + head["score.0.bias"])
    assert reward == pytest.approx(
        float((head["score.2.weight"] @ inner + head["score.2.bias"]).softmax(0)[1]), abs=1e-5
    )
    with pytest.raises(ConfigError, match="is it a Qwen"):
        StepRewards(RewardConfig(path=str(tiny_model), form="qwen"), word)._body  # noqa: B018


@pytest.mark.parametrize("method", ["full", "lora"])
def test_answers_are_learnt_and_prompts_are_not(tiny_model, method):
    tokenizer = load_tokenizer(tiny_model, generates=True)
    settings = SLMConfig(
        path=str(tiny_model),
        method=method,
        learning_rate=1e-2,
        batch_size=4,
        min_steps=40,
        max_steps=40,
    )
    pairs = [(f"{question}\n", GOOD) for question in QUESTIONS]
    base = load_causal_lm(tiny_model, tokenizer=tokenizer)
    rows = encode_pairs(tokenizer, pairs, 64)
    with torch.no_grad():
        before, mask = answer_logprobs(base, rows, tokenizer.pad_token_id)
    model, _ = train_causal(base, tokenizer, pairs, settings)
    with torch.no_grad():
        after, _ = answer_logprobs(model, rows, tokenizer.pad_token_id)
    assert float((after * mask).sum()) > float((before * mask).sum()) + 5
    with pytest.raises(ValueError, match="leaves room"):
        train_causal(base, tokenizer, pairs, settings.model_copy(update={"max_tokens": 2}))
