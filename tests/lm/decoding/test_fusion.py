"""Fused decoding against the formula on full forwards; prompts computed once; models that cannot be
fused refused."""

import os

import pytest
import torch
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.fusion import (
    AdapterDifference,
    FusedStepper,
    averaged,
    proxy_tuned,
    shared_context,
    shared_vocabulary,
    slm_pair,
)
from fedduet.lm.decoding.llama import LlamaStepper
from fedduet.lm.decoding.stepper import AnyStepper, stepper
from fedduet.lm.models.batch import pad
from fedduet.lm.models.load import attach_lora, trainable
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PROMPTS = [(5, 6, 9), (7,), (10, 11, 12, 13, 14, 15), (16, 5)]
NEVER = frozenset({-1})


def varied(model, seed):
    """`model` with weights of its own."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=drawn) * 0.3)
    return model


@pytest.fixture
def three(llama):
    """A large model, a tuned small one and its base, all different."""
    return varied(llama(), 1), varied(llama(), 2), varied(llama(), 3)


@pytest.fixture
def adapted(llama):
    model = attach_lora(varied(llama(), 3), 4, 8)
    for number, weight in enumerate(trainable(model).values()):
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(number))
    return model


def last(model, row):
    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits[0, -1].float()


def walk(run, formula, atol=1e-4):
    """`run` on left-padded prompts, rows leaving and repeating on the way, equals `formula(row)` at
    every step."""
    rows = [list(prompt) for prompt in PROMPTS]
    with torch.inference_mode():
        logits = run.prefill(*pad(rows, 0, left=True), 8)
        for step in range(5):
            expected = torch.stack([formula(row) for row in rows])
            assert torch.allclose(logits, expected, atol=atol), step
            if step == 2:
                keep = [3, 1, 1]
                run.keep(torch.tensor(keep))
                rows = [list(rows[i]) for i in keep]
            tokens = [7 + step + place for place in range(len(rows))]
            rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
            logits = run.step(torch.tensor(tokens))


@pytest.mark.parametrize("alpha", [1.0, 0.4, -2.0])
def test_fused_logits_equal_the_formula(three, alpha):
    llm, tuned, base = three
    run = proxy_tuned(stepper(llm), slm_pair(tuned, base), alpha)
    walk(run, lambda row: last(llm, row) + alpha * (last(tuned, row) - last(base, row)), 3e-4)


def test_average_is_the_mean(three):
    run = averaged(dict(zip("abc", map(AnyStepper, three), strict=True)))
    walk(run, lambda row: torch.stack([last(model, row) for model in three]).mean(dim=0))


def test_an_adapter_is_its_own_base(adapted, three, monkeypatch):
    llm = three[0]

    def without_adapter(row):
        with adapted.disable_adapter():
            return last(adapted, row)

    def formula(row):
        tuned, base = last(adapted, row), without_adapter(row)
        assert (tuned - base).abs().max() > 0.5  # the adapter matters
        return last(llm, row) + 0.7 * (tuned - base)

    folded = slm_pair(adapted)
    assert isinstance(folded.tuned, LlamaStepper) and list(folded.difference) == ["tuned", "base"]
    walk(proxy_tuned(stepper(llm), folded, 0.7), formula, 3e-4)
    weights = sum(weight.nbytes for weight in adapted.parameters())
    # too little to copy the weights
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": weights}.get)
    shared = slm_pair(adapted)
    assert list(shared.difference) == ["pair"] and isinstance(
        shared.difference["pair"][0], AdapterDifference
    )
    walk(proxy_tuned(stepper(llm), shared, 0.7), formula, 3e-4)
    walk(shared.tuned, lambda row: last(adapted, row))
    walk(shared.base, without_adapter)
    assert shared.tuned.model is adapted  # not a copy


def test_alpha_0_is_the_llm_alone(three):
    llm, tuned, base = three
    asks = [Ask(PROMPTS[i % 4], 4 + i, 0.8, 0, 0.9, seed=i) for i in range(8)]
    fused = decode(proxy_tuned(stepper(llm), slm_pair(tuned, base), 0.0), asks, frozenset({1}))
    assert fused == decode(stepper(llm), asks, frozenset({1}))
    assert fused != decode(
        proxy_tuned(stepper(llm), slm_pair(tuned, base), 1.0), asks, frozenset({1})
    )


def test_a_batch_equals_its_rows_one_by_one(three):
    llm, tuned, base = three
    run = proxy_tuned(stepper(llm), slm_pair(tuned, base), 1.0)
    asks = [
        Ask(PROMPTS[i % 3], 3 + i, 1.0 - 0.05 * i, 0, 1.0, i, lambda new: new[-1] == 7)
        for i in range(12)
    ]
    together = decode(run, asks, frozenset({1}))
    assert together == [decode(run, [ask], frozenset({1}))[0] for ask in asks]
    assert {answer.finish for answer in together} >= {"length", "end"} and len(
        {answer.tokens for answer in together}
    ) > 6


def test_candidates_of_a_prefix_share_its_cache_in_every_model(three):
    llm, tuned, base = three
    run = proxy_tuned(stepper(llm), slm_pair(tuned, base), 1.0)
    decode(run, [Ask(PROMPTS[2], 5, seed=i) for i in range(10)], NEVER)
    # the prompt once; the last token is not fed
    assert run.processed == dict.fromkeys(("llm", "tuned", "base"), 6 + 10 * 4)
    decode(run, [Ask(PROMPTS[0], 1), Ask(PROMPTS[1], 1)], NEVER)
    assert run.processed["llm"] == 46 + 3 + 1  # pads are not counted


def test_padded_embeddings_are_cut_to_the_vocabulary(llama, three):
    llm, tuned, base = three
    wide = varied(llama(), 1)
    wide.resize_token_embeddings(40)
    with torch.no_grad():
        wide.model.embed_tokens.weight[28:] = 50.0
        wide.model.embed_tokens.weight[:28] = llm.model.embed_tokens.weight
    with pytest.raises(
        ValueError, match=r"found vocabularies of \{'llm': 40, 'tuned': 28, 'base': 28\} tokens"
    ):
        decode(proxy_tuned(stepper(wide), slm_pair(tuned, base), 1.0), [Ask((5,), 2)], NEVER)
    walk(
        proxy_tuned(stepper(wide), slm_pair(tuned, base), 1.0, vocabulary=28),
        lambda row: last(llm, row) + last(tuned, row) - last(base, row),
        3e-4,
    )


def words(names):
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def test_vocabularies_must_be_one(llama, tokenizer):
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    model = llama()
    assert shared_vocabulary(
        {"LLM": (model, tokenizer), "private SLM": (model, words(names))}
    ) == len(names)
    swapped = [*names[:5], names[6], names[5], *names[7:]]
    with pytest.raises(
        ValueError,
        match=(
            r"the LLM and the private SLM have different vocabularies \(\d+ and \d+ tokens; 'good'"
            r" is token 5 in one"
        ),
    ):
        shared_vocabulary({"LLM": (model, words(swapped)), "private SLM": (model, tokenizer)})
    with pytest.raises(ValueError, match="let the LLM write whole steps"):
        shared_vocabulary(
            {"LLM": (model, words([*names, "more"])), "private SLM": (model, tokenizer)}
        )
    with pytest.raises(
        ValueError, match="the SLM knows 28 tokens and its tokenizer 29; load it with its tokenizer"
    ):
        shared_vocabulary({"SLM": (model, words([*names, "more"]))})
    assert shared_context([model, llama(attention_bias=True)]) == 64


def test_members_and_weights_must_match(llama):
    with pytest.raises(ValueError, match=r"found members \['a'\] and weights for \['b'\]"):
        FusedStepper({"a": stepper(llama())}, {"b": 1.0})
    with pytest.raises(ValueError, match="needs its untuned base"):
        slm_pair(llama())
