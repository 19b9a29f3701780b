"""Judging the demonstrations, and the defects of the public code that must not return."""

import math
import re
import time

import numpy as np
import pytest
import torch
from fedduet.conf.check import ConfigError, check
from fedduet.server.llm.scripted import ScriptedLLM
from fedduet.server.llm.transformers_engine import TransformersLLM
from fedduet.server.writing.curate import CurateConfig, Demonstration, curate
from fedduet.server.writing.grouping import group_by_similarity, nearest_neighbours
from fedduet.server.writing.likelihood import label_likelihoods, least_posterior, open_document
from fedduet.tasks.config import CHAT_JUDGE
from fedduet.tasks.task import Prompts, Task
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TASK = Task(
    "reviews", ("negative", "positive"), {"a": "kitchen"}, prompts=Prompts(chat_judge=CHAT_JUDGE)
)
GOOD, BAD = {"sharp", "great", "love"}, {"broken", "poor", "hate"}


class LexiconLLM(ScriptedLLM):
    """A base LLM whose words are `RATIO` times likelier after the label they speak for; it scores
    exactly."""

    RATIO = 4.0

    def continuation_logprobs(self, pairs, progress=None):
        return [
            sum(self._word(word, "positive" in prompt) for word in text.split())
            for prompt, text in pairs
        ]

    def _word(self, word, positive):
        speaks_for = GOOD if positive else BAD
        return math.log(0.01) + (math.log(self.RATIO) if word in speaks_for else 0.0)


def embed_by_hash(texts):
    rng = {text: np.random.default_rng(sum(map(ord, text))) for text in texts}
    return np.stack([rng[text].normal(size=8) for text in texts])


def demo(text, label=1, domain="kitchen", client="a"):
    return Demonstration(text, label, domain, client)


def distinct(number, label=1, domain="kitchen"):
    return [
        demo(
            f"text {label} {chr(97 + i)} {chr(97 + i)}x {chr(97 + i)}y ends here{i}", label, domain
        )
        for i in range(number)
    ]


def chat(answers, context=8192):
    return ScriptedLLM(answers, form="chat", context=context)


def balance(counts):
    dropped = sum(
        v
        for k, v in counts.items()
        if k.startswith("rule_") or k in ("unknown_label", "near_copy", "off_label", "not_fluent")
    )
    return counts["kept"] + dropped - counts["put_back"]


# -- chat form -------------------------------------------------------------------------------------


def test_the_llm_reads_groups_of_one_domain_and_label_and_its_list_decides():
    prompts = []

    def answer(request):
        prompts.append(request.prompt[-1].content)
        assert request.temperature == 0
        return "[0]"

    demonstrations = distinct(5) + distinct(3, label=0) + distinct(2, domain="toys")
    result = curate(
        demonstrations,
        TASK,
        chat(answer),
        embed_by_hash,
        CurateConfig(group_size=3, keep_at_least=0),
        0,
    )
    assert [(prompt.count("positive:"), prompt.count("negative:")) for prompt in prompts] == [
        (3, 0),
        (2, 0),
        (0, 3),
        (2, 0),
    ]
    assert sorted(len(group) for group in result.groups) == [2, 2, 3, 3]
    assert len(result.kept) == 4 == result.counts["llm_groups"]
    for group in result.groups:
        assert len({(demonstrations[i].domain, demonstrations[i].label) for i in group}) == 1
    assert sorted(i for group in result.groups for i in group) == list(range(10))
    assert balance(result.counts) == 10


def test_an_answer_with_a_list_of_numbers_keeps_those_members():
    """In the public code an answer like `[0, 2]` dropped the whole cluster."""
    result = curate(
        distinct(4), TASK, chat(["[0, 2]"]), embed_by_hash, CurateConfig(keep_at_least=0), 0
    )
    group = result.groups[0]
    assert [one.text for one in result.kept] == [
        distinct(4)[i].text for i in sorted((group[0], group[2]))
    ]
    assert result.counts["off_label"] == 2 and result.counts["llm_unreadable"] == 0


def test_unreadable_and_failed_answers_keep_their_group_and_are_counted():
    # a third group gets an error: the script is used up
    answers = ["I could not possibly say.", "[]"]
    result = curate(
        distinct(9),
        TASK,
        chat(answers),
        embed_by_hash,
        CurateConfig(group_size=3, keep_at_least=0),
        0,
    )
    assert (
        result.counts["llm_unreadable"] == 1
        and result.counts["llm_failed"] == 1
        and result.counts["llm_groups"] == 3
    )
    assert {one.text for one in result.kept} == {
        distinct(9)[i].text for i in result.groups[0] + result.groups[2]
    }
    assert result.counts["off_label"] == 3


def test_no_label_vanishes_silently():
    """In the public code a label that lost all its samples was gone without a word."""
    demonstrations = distinct(6, 1) + distinct(2, 0)
    result = curate(
        demonstrations,
        TASK,
        chat(lambda request: "[]"),
        embed_by_hash,
        CurateConfig(keep_at_least=3),
        0,
    )
    assert result.kept_per_label == {("kitchen", 0): 2, ("kitchen", 1): 3}
    assert result.counts["put_back"] == 5 and result.counts["empty_labels"] == 0
    assert [one.text for one in result.kept if one.label] == [
        one.text for one in demonstrations[:3]
    ]
    lonely = curate(
        distinct(6, 1), TASK, chat(lambda request: "[]"), embed_by_hash, CurateConfig(), 0
    )
    assert lonely.counts["empty_labels"] == 1 and lonely.kept_per_label["kitchen", 0] == 0


def test_rules_and_near_copies_come_first_and_texts_are_cleaned():
    words = " ".join(f"w{i}" for i in range(20))
    texts = [
        "no",
        "Review: the pan is good and heavy",
        words,
        words.replace("w5 ", "x "),
        "The  pan is good and heavy",
    ]
    result = curate(
        [demo(text) for text in texts],
        TASK,
        chat(["all"]),
        embed_by_hash,
        CurateConfig(keep_at_least=0),
        0,
    )
    assert [one.text for one in result.kept] == ["the pan is good and heavy", words]
    assert (
        result.counts["rule_too_short"],
        result.counts["rule_duplicate"],
        result.counts["near_copy"],
    ) == (1, 1, 1)
    assert balance(result.counts) == 5
    back = curate(
        [demo("no"), demo(words)],
        TASK,
        chat(["all"]),
        embed_by_hash,
        CurateConfig(keep_at_least=2),
        0,
    )
    assert [one.text for one in back.kept] == ["no", words] and back.counts["put_back"] == 1


def test_labels_that_are_none_are_dropped_and_counted():
    """The public code read a float label by its first character."""
    demonstrations = [
        demo("a pan that is good and heavy", label) for label in (1, 2, -1, 1.0, True, "1")
    ]
    result = curate(demonstrations, TASK, chat(["all"]), embed_by_hash, CurateConfig(), 0)
    assert result.counts["unknown_label"] == 5 and len(result.kept) == 1


def test_switched_off_it_keeps_everything_and_asks_nobody():
    demonstrations = [demo("no"), demo("no")]
    result = curate(demonstrations, TASK, chat([]), None, CurateConfig(enabled=False), 0)
    assert list(result.kept) == demonstrations and result.counts["kept"] == 2


def test_nothing_in_gives_nothing_out():
    assert curate([], TASK, chat([]), embed_by_hash, CurateConfig(), 0).kept == ()
    assert curate([], TASK, LexiconLLM([]), None, CurateConfig(), 0).kept == ()


# -- completion form -------------------------------------------------------------------------------


def test_likelihood_gives_the_posterior_of_bayes_rule():
    texts = ["it is sharp and great", "it is broken", "it is sharp but broken and poor", "plain"]
    found = label_likelihoods(LexiconLLM([]), TASK, texts, ["kitchen"] * 4).posteriors()[:, 1]
    assert found == pytest.approx([16 / 17, 1 / 5, 1 / 5, 1 / 2])  # 4:1 for each telling word


def test_a_base_llm_judges_by_likelihood_without_embedding():
    texts = [
        "the pan is sharp and great",
        "i hate this broken thing now",
        "it is a pan for the stove",
    ]
    demonstrations = [demo(text, 1) for text in texts]
    result = curate(demonstrations, TASK, LexiconLLM([]), None, CurateConfig(keep_at_least=0), 0)
    # one half is no evidence against the label
    assert [one.text for one in result.kept] == [texts[0], texts[2]]
    assert result.counts["judged_by_likelihood"] == 3 and result.counts["off_label"] == 1
    strict = curate(
        demonstrations,
        TASK,
        LexiconLLM([]),
        None,
        CurateConfig(keep_at_least=0, label_posterior=0.9),
        0,
    )
    assert [one.text for one in strict.kept] == [texts[0]]
    best = curate(
        demonstrations,
        TASK,
        LexiconLLM([]),
        None,
        CurateConfig(keep_at_least=2, label_posterior=0.99),
        0,
    )
    assert [one.text for one in best.kept] == [texts[0], texts[2]] and best.counts["put_back"] == 2
    assert (
        least_posterior(None, 2) == 0.4
        and least_posterior(None, 4) == 0.2
        and least_posterior(0.5, 4) == 0.5
    )


def test_the_least_fluent_share_is_dropped_by_log_probability_per_token():
    texts = ["the pan is sharp great love", "a pan which is sharp", "this is one of those pans"]
    config = CurateConfig(keep_at_least=0, fluency_quantile=0.34)
    result = curate([demo(text) for text in texts], TASK, LexiconLLM([]), None, config, 0)
    assert [one.text for one in result.kept] == texts[:2] and result.counts["not_fluent"] == 1


def test_a_base_llm_that_cannot_score_leaves_it_to_the_rules_and_says_so():
    result = curate(
        [*distinct(3), demo("no")], TASK, ScriptedLLM([]), None, CurateConfig(keep_at_least=0), 0
    )
    assert (
        len(result.kept) == 3
        and result.counts["not_judged"] == 3
        and "judged_by_chat" not in result.counts
    )


def test_a_judge_the_engine_cannot_be_is_refused():
    with pytest.raises(
        ConfigError, match=r"curate.judge: found chat, but scripted follows no instructions"
    ):
        curate([], TASK, ScriptedLLM([]), None, CurateConfig(judge="chat"), 0)
    with pytest.raises(
        ConfigError, match=r"curate.judge: found likelihood, but scripted cannot score text"
    ):
        curate([], TASK, chat([]), None, CurateConfig(judge="likelihood"), 0)
    with pytest.raises(ConfigError, match=re.escape("curate.group_size: found 0")):
        check(CurateConfig, {"group_size": 0}, "curate")


@pytest.fixture(scope="module")
def tiny():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(["<eos>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return TransformersLLM(
        LlamaForCausalLM(config), fast, name="tiny", form="completion", context=128
    )


def test_likelihoods_equal_a_direct_computation_and_long_texts_are_cut(tiny):
    texts = ["a sharp pan", "it broke"]
    found = label_likelihoods(tiny, TASK, texts, ["kitchen", "toys"])
    for row, (text, domain) in enumerate(zip(texts, ["kitchen", "toys"], strict=True)):
        for label in (0, 1):
            start = open_document(TASK, domain, label)
            assert start == f"Product: {domain}\nRating: {TASK.labels[label]}\nReview:"
            ids = tiny.tokenizer(start + " " + text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logprobs = tiny.model(ids).logits[0].log_softmax(-1)
            own = [
                logprobs[place - 1, ids[0, place]].item()
                for place in range(len(start), ids.shape[1])
            ]
            assert found.logprobs[row, label] == pytest.approx(sum(own), abs=1e-3)
            assert found.tokens[row] == len(own) == len(text) + 1
    long = label_likelihoods(tiny, TASK, ["word " * 60], ["kitchen"])
    assert long.cut == 1 and 0 < long.tokens[0] < 128 and np.isfinite(long.logprobs).all()


# -- grouping --------------------------------------------------------------------------------------


def test_neighbours_equal_sorting_all_cosines():
    vectors = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    indices, cosines = nearest_neighbours(vectors, 5)
    every = vectors @ vectors.T
    np.fill_diagonal(every, -np.inf)
    assert np.allclose(cosines, -np.sort(-every, axis=1)[:, :5], atol=1e-6)
    assert np.allclose(np.take_along_axis(every, indices, axis=1), cosines, atol=1e-6)


def test_similar_texts_share_a_group_and_small_groups_are_packed():
    rng = np.random.default_rng(1)
    centres = np.eye(4)
    vectors = np.concatenate([centres[i] + 0.01 * rng.normal(size=(5, 4)) for i in range(4)])
    groups = group_by_similarity(vectors, 5, 0.9)
    assert [sorted(group) for group in groups] == [list(range(5 * i, 5 * i + 5)) for i in range(4)]
    packed = group_by_similarity(vectors, 8, 0.9)
    assert [len(group) for group in packed] == [5, 5, 5, 5]
    singles = group_by_similarity(np.eye(10), 4, 0.9)
    assert [len(group) for group in singles] == [4, 4, 2] and sorted(
        row for group in singles for row in group
    ) == list(range(10))
    assert (
        group_by_similarity(np.zeros((1, 3)), 8, 0.5) == [[0]]
        and group_by_similarity(np.zeros((0, 3)), 8, 0.5) == []
    )


def test_ten_thousand_texts_are_grouped_in_seconds():
    vectors = np.random.default_rng(0).normal(size=(10_000, 384)).astype(np.float32)
    started = time.process_time()
    groups = group_by_similarity(vectors, 8, 0.1)
    assert time.process_time() - started < 15
    assert max(map(len, groups)) <= 8 and sorted(i for group in groups for i in group) == list(
        range(10_000)
    )
