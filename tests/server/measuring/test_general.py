"""General ability: perplexity against the model's own logits, continuation questions, disjoint
replay, and when a tuning is undone."""

import gzip
import json
import math

import pytest
import torch
from fedduet.conf.check import ConfigError
from fedduet.server.measuring.general import (
    General,
    GeneralConfig,
    GeneralMeasure,
    Question,
    fell,
    load_general,
    measure_general,
)

WORDS = [f"word{n}" for n in range(18)]


def neutral(folder, count=40, name="neutral.txt"):
    texts = [
        " ".join([f"paragraph{n}", *WORDS[:9], *(f"{word}of{n}" for word in WORDS[9:])])
        for n in range(count)
    ]
    (folder / name).write_text("\n\n".join(texts))
    return folder / name


class Scorer:
    """Scores text by a rule: `rule(prompt, continuation)` is its log-probability. Tokens are
    words."""

    name, form, parameters, context = "rule", "completion", None, 512

    def __init__(self, rule):
        self.rule = rule

    def generate(self, requests, progress=None):
        raise AssertionError("not asked to write")

    def count_tokens(self, text):
        return len(text.split())

    def continuation_logprobs(self, pairs, progress=None):
        return [self.rule(*pair) for pair in pairs]

    def close(self):
        pass


def test_perplexity_is_the_models_own(tiny_model):
    from fedduet.server.llm.transformers_engine import TransformersLLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    llm = TransformersLLM(model, tokenizer, name="tiny", form="completion", context=128)
    texts = ("good lamps are bright and quiet", "the coffee was cold on the third day")
    measured = measure_general(
        llm, General(texts, (), (Question("good", (" lamps", " x"), 0),), 96)
    )
    total = count = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        first = len(tokenizer(text.split(" ")[0])["input_ids"])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        total, count = total + float(logprobs[first - 1 :].sum()), count + ids.shape[1] - first
    assert measured.tokens == count and measured.perplexity == pytest.approx(
        math.exp(-total / count), rel=1e-4
    )


def test_measured_and_replayed_texts_are_different_and_the_seed_decides(tmp_path):
    config = GeneralConfig(texts=str(neutral(tmp_path)), documents=12)
    general = load_general(config, 0)
    assert len(general.measured) == len(general.replay) == 12 and not set(general.measured) & set(
        general.replay
    )
    assert load_general(config, 0) == general and load_general(config, 1) != general


def test_continuation_questions_have_the_true_half_once_and_equal_lengths(tmp_path):
    general = load_general(GeneralConfig(texts=str(neutral(tmp_path)), documents=12), 0)
    assert len(general.questions) == 12
    for text, question in zip(general.measured, general.questions, strict=True):
        assert (
            question.prompt + question.choices[question.answer] == text
            and len(set(question.choices)) == 4
        )
        assert len({len(choice.split()) for choice in question.choices}) == 1
    assert len({question.answer for question in general.questions}) > 1


def test_accuracy_is_of_the_likeliest_choice_per_token():
    questions = (Question("p", (" a a a a", " b"), 0), Question("p", (" a", " b b"), 1))
    llm = Scorer(
        lambda prompt, choice: {" a a a a": -4.0, " b": -1.5, " a": -1.0, " b b": -3.0}.get(
            choice, -1.0
        )
    )
    measured = measure_general(llm, General(("x y z",), (), questions, 96))
    # -1 a token beats -1.5; -1 beats -1.5 too, which is wrong in the second
    assert measured.accuracy == 0.5


def test_what_fell_is_said_and_what_is_allowed_passes():
    config, before = (
        GeneralConfig(worst_perplexity=0.02, worst_accuracy=0.05),
        GeneralMeasure(100.0, 0.5, 10, 20),
    )
    assert fell(before, GeneralMeasure(101.9, 0.45, 10, 20), config) == ""
    assert "rose by 2.1%" in fell(before, GeneralMeasure(102.1, 0.5, 10, 20), config)
    assert "fell from 0.500 to 0.440" in fell(before, GeneralMeasure(90.0, 0.44, 10, 20), config)
    assert fell(before, GeneralMeasure(math.nan, 0.5, 10, 20), config)


def test_files_gz_jsonl_and_questions(tmp_path):
    plain = neutral(tmp_path)
    (tmp_path / "n.txt.gz").write_bytes(gzip.compress(plain.read_bytes()))
    rows = [{"body": text} for text in plain.read_text().split("\n\n")]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "q.jsonl").write_text(
        json.dumps({"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}) + "\n"
    )
    expected = load_general(GeneralConfig(texts=str(plain), documents=8), 3)
    assert load_general(GeneralConfig(texts=str(tmp_path / "n.txt.gz"), documents=8), 3) == expected
    asked = load_general(
        GeneralConfig(
            texts=str(tmp_path / "n.jsonl"),
            text_column="body",
            documents=8,
            tasks=(str(tmp_path / "q.jsonl"),),
        ),
        3,
    )
    assert asked.measured == expected.measured and asked.questions[-1] == Question(
        "2 + 2 =", (" 4", " 5"), 0
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"texts": "missing.txt"}, "missing.txt cannot be read"),
        ({"documents": 30}, "40 usable texts; 60 are needed"),
        ({"texts": "bad.jsonl"}, "line 1: has no text in 'text'"),
        ({"tasks": ("bad.jsonl",)}, "line 1: needs prompt, choices and answer"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ConfigError, match=said):
        load_general(
            GeneralConfig(**({"texts": str(neutral(tmp_path)), "documents": 12} | change)), 0
        )


def test_the_built_in_worlds_neutral_text_holds_no_private_word_and_none_is_asked_for_by_null():
    from fedduet.tasks.builtin import world_words

    general = load_general(GeneralConfig(texts="builtin:world"), 0)
    private = {domain.product for domain in world_words.PRIVATE} | {
        domain.name for domain in world_words.PRIVATE
    }
    words = {
        word.strip(".,:") for text in (*general.measured, *general.replay) for word in text.split()
    }
    assert len(general.measured) == 64 and not private & words
    assert load_general(GeneralConfig(), 0) is None


def test_an_engine_that_cannot_score_is_an_error_with_the_way_out():
    from fedduet.server.llm.scripted import ScriptedLLM

    with pytest.raises(ConfigError, match=r"strategy.general.texts=null"):
        measure_general(ScriptedLLM([]), General(("a b",), (), (), 8))
