"""Adapters of the transformers engine: they learn what they are told, keep to their leash and to
themselves, and plain peft reads them."""

import copy
import math

import pytest
import torch
from fedduet.lm.training.config import ExamplesConfig, PolicyConfig
from fedduet.server.llm.base import Example, Rated, Request, Tunes
from fedduet.server.llm.transformers_engine import TransformersLLM
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "Product: lamps\nRating: positive\nReview:"
FAST = {"learning_rate": 5e-3, "rank": 4, "alpha": 8.0}


@pytest.fixture
def llm(tiny_model):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    return TransformersLLM(model, tokenizer, name="tiny", form="completion", context=128)


def rated(llm, word=" good", count=32):
    """Texts the LLM wrote, and the same with `word` in them, which is what is rewarded."""
    texts = [
        answer.text
        for answer in llm.generate([Request(PROMPT, 8, seed=seed) for seed in range(count)])
    ]
    texts = [text + word if place % 2 else text for place, text in enumerate(texts)]
    return [Rated(PROMPT, text, float(word in text), "positive", False) for text in texts]


def weights(llm):
    return {name: value.clone() for name, value in llm.model.state_dict().items()}


def test_rewarded_texts_become_likelier_within_the_leash(llm):
    assert isinstance(llm, Tunes)
    pair = [(PROMPT, " x good")]
    before = llm.continuation_logprobs(pair)[0]
    report = llm.tune_policy(
        "generate", rated(llm), PolicyConfig(**FAST, epochs=4, kl_limit=2.0), 0
    )
    assert report.stopped == "" and report.steps == 4 and 0 < report.kl <= 2.0
    assert llm.adapter is None and llm.continuation_logprobs(pair)[0] == before  # not in use yet
    llm.use("generate")
    assert llm.continuation_logprobs(pair)[0] > before + 0.1
    llm.use(None)
    assert llm.continuation_logprobs(pair)[0] == before


@pytest.mark.parametrize("objective", ["policy_gradient", "dpo", "likelihood"])
def test_every_objective_moves_towards_the_reward(llm, objective):
    sample = rated(llm)
    good, bad = (
        [(one.prompt, one.text) for one in sample if one.reward],
        [(one.prompt, one.text) for one in sample if not one.reward],
    )
    before = sum(llm.continuation_logprobs(good)) - sum(llm.continuation_logprobs(bad))
    report = llm.tune_policy(
        "a",
        sample,
        PolicyConfig(**FAST, objective=objective, epochs=3, kl_limit=20.0, kl_weight=0.0),
        0,
    )
    llm.use("a")
    assert (
        report.stopped == ""
        and sum(llm.continuation_logprobs(good)) - sum(llm.continuation_logprobs(bad)) > before
    )


def test_past_the_limit_the_adapter_is_as_it_was(llm):
    llm.tune_policy("a", rated(llm), PolicyConfig(**FAST, kl_limit=5.0), 0)
    before = weights(llm)
    report = llm.tune_policy("a", rated(llm, " bad"), PolicyConfig(**FAST, kl_limit=1e-9), 0)
    assert report.stopped == "kl" and all(
        torch.equal(value, before[name]) for name, value in weights(llm).items()
    )


def test_a_loss_that_is_no_number_is_undone(llm):
    llm.tune_policy("a", rated(llm), PolicyConfig(**FAST, kl_limit=5.0), 0)
    before = weights(llm)
    llm.model.get_base_model().model.embed_tokens.weight.data[:] = float("nan")
    report = llm.tune_policy(
        "a",
        rated(llm)[:0] + [Rated(PROMPT, " x", r, "g") for r in (0.0, 1.0)],
        PolicyConfig(**FAST),
        0,
    )
    assert report.stopped == "kl" and all(
        torch.equal(v, before[n]) for n, v in weights(llm).items() if "lora" in n
    )


def test_without_a_signal_nothing_happens(llm):
    flat = [Rated(PROMPT, f" word {n}", 0.3, "g") for n in range(6)]
    for objective in ("policy_gradient", "dpo", "likelihood"):
        report = llm.tune_policy("a", flat, PolicyConfig(objective=objective), 0)
        assert (report.stopped, report.steps) == ("no_signal", 0)


def examples(count=24):
    return [
        Example(
            f"Review: {'great' if n % 2 else 'awful'} thing {n}\nRating:",
            " positive" if n % 2 else " negative",
        )
        for n in range(count)
    ]


def test_answers_are_learnt_and_kept_texts_hold_the_llm_back(llm):
    keep = [
        f"The river rose on day {n} and the town was quiet again by the evening." for n in range(12)
    ]
    drift = {}
    for weight in (0.0, 5.0):
        name = f"task{weight:g}"
        report = llm.tune_examples(
            name,
            examples(),
            ExamplesConfig(**FAST, epochs=25, keep_weight=weight, kl_limit=50.0),
            0,
            keep,
        )
        drift[weight] = report.kl
        llm.use(name)
        right = 0
        for one in examples():
            positive, negative = llm.continuation_logprobs(
                [(one.prompt, " positive"), (one.prompt, " negative")]
            )
            right += (positive > negative) == (one.answer == " positive")
        llm.use(None)
        assert right >= 22
    assert 0 < drift[5.0] < 0.7 * drift[0.0]
    undone = llm.tune_examples("task5", examples(), ExamplesConfig(**FAST, kl_limit=1e-9), 0, keep)
    assert undone.stopped == "kl"
    # nothing to measure it on
    assert math.isnan(
        llm.tune_examples("task0", examples(), ExamplesConfig(**FAST, epochs=1), 0).kl
    )


def test_weights_of_examples_count(llm):
    """Two answers to one question: the heavier one wins."""
    said = [Example("Rating:", " positive", 1.0), Example("Rating:", " negative", 0.01)]
    llm.tune_examples("a", said * 8, ExamplesConfig(**FAST, epochs=20), 0)
    llm.use("a")
    positive, negative = llm.continuation_logprobs(
        [("Rating:", " positive"), ("Rating:", " negative")]
    )
    # the logits of a random model this small cannot differ by much more
    assert positive > negative + 0.4


def test_plain_peft_loads_a_saved_adapter_with_the_same_logits(llm, tiny_model, tmp_path):
    llm.tune_policy("a", rated(llm), PolicyConfig(**FAST, kl_limit=5.0), 0)
    llm.save_adapter("a", tmp_path / "round-0")
    llm.use("a")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        mine = llm.model(ids).logits
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "round-0"
        ).eval()
        assert torch.equal(plain(ids).logits, mine)
        assert torch.allclose(plain.merge_and_unload()(ids).logits, mine, atol=1e-5)


def test_loading_brings_back_a_round_and_leaves_other_adapters_alone(llm, tmp_path):
    sample = rated(llm)
    llm.tune_policy("a", sample, PolicyConfig(**FAST, kl_limit=5.0), 0)
    llm.save_adapter("a", tmp_path / "a0")
    llm.tune_policy("b", sample, PolicyConfig(**FAST, kl_limit=5.0), 1)
    first = weights(llm)
    llm.tune_policy("a", rated(llm, " bad"), PolicyConfig(**FAST, kl_limit=5.0), 2)
    changed = weights(llm)
    assert any(
        not torch.equal(changed[name], value) for name, value in first.items() if ".a." in name
    )
    assert all(
        torch.equal(changed[name], value) for name, value in first.items() if ".a." not in name
    )
    llm.load_adapter("a", tmp_path / "a0")
    assert all(torch.equal(weights(llm)[name], value) for name, value in first.items())
    llm.use("a")
    llm.drop_adapter("a")
    assert llm.adapter is None
    with pytest.raises(KeyError, match="adapter 'a': not there; found: b"):
        llm.use("a")


def test_the_base_is_itself_again_without_adapters(llm):
    before, text = weights(llm), llm.generate([Request(PROMPT, 12, seed=3)])[0].text
    llm.tune_policy("a", rated(llm), PolicyConfig(**FAST, kl_limit=5.0), 0)
    assert llm.generate([Request(PROMPT, 12, seed=3)])[0].text == text
    llm.use("a")
    llm.drop_adapter("a")
    assert all(torch.equal(value, before[name]) for name, value in weights(llm).items()) and len(
        weights(llm)
    ) == len(before)


def test_generation_uses_the_adapter_folded_in(llm):
    llm.tune_examples(
        "a", [Example(PROMPT, " good good good good")] * 8, ExamplesConfig(**FAST, epochs=40), 0
    )
    llm.use("a")
    assert "good good" in llm.generate([Request(PROMPT, 6, temperature=0)])[0].text


def test_one_seed_gives_one_adapter(llm, tiny_model):
    other = TransformersLLM(
        copy.deepcopy(llm.model), llm.tokenizer, name="tiny", form="completion", context=128
    )
    sample = rated(llm)
    for engine in (llm, other):
        engine.tune_policy("a", sample, PolicyConfig(**FAST, kl_limit=5.0), 7)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(llm).values(), weights(other).values(), strict=True)
    )
