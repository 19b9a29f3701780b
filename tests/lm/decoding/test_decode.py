"""The decode loop against the library's own forward, row by row; and its laws of seeds, stopping
and sampling."""

import os
import threading

import numpy as np
import pytest
import torch
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.llama import LlamaStepper, is_plain_llama
from fedduet.lm.decoding.products import product
from fedduet.lm.decoding.sample import sample_texts
from fedduet.lm.decoding.stepper import AnyStepper, stepper
from fedduet.lm.models.batch import pad
from fedduet.lm.models.load import attach_lora, trainable
from peft import LoraConfig, inject_adapter_in_model
from scipy import stats

PROMPTS = [(5, 6, 9), (7,), (10, 11, 12, 13, 14, 15), (16, 5)]
NEVER = frozenset({-1})


def greedy_by_hand(model, prompt, count, ends=NEVER):
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("shape", ["llama", "llama-gqa", "gpt2"])
@pytest.mark.parametrize("fast", [True, False])
def test_greedy_rows_equal_the_plain_model_one_by_one(llama, gpt2, shape, fast):
    model = (
        gpt2()
        if shape == "gpt2"
        else llama(kv=1 if shape == "llama-gqa" else 2, tied=shape == "llama")
    )
    run = stepper(model) if fast else AnyStepper(model)
    assert isinstance(run, LlamaStepper) == (fast and shape != "gpt2")
    asks = [
        Ask(prompt, length, temperature=0.0)
        for prompt, length in zip(PROMPTS * 2, (3, 20, 9, 14, 1, 6, 20, 2), strict=True)
    ]
    expected = [greedy_by_hand(model, ask.prompt, ask.max_new_tokens) for ask in asks]
    for size in (1, 3, 8):
        answers = decode(run, asks, NEVER, batch_size=size)
        assert [answer.tokens for answer in answers] == expected and {
            answer.finish for answer in answers
        } == {"length"}


def test_llama_logits_equal_the_models(llama):
    """Left padding, grouped heads, untied head, rows that leave: to float32 rounding at every
    step."""
    model = llama(kv=1, tied=False)
    for norm in (model.model.norm, *(layer.input_layernorm for layer in model.model.layers)):
        # norms are folded into the products, so they must matter here
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
    rows = [list(prompt) for prompt in PROMPTS]
    run = LlamaStepper(model)
    with torch.inference_mode():
        logits = run.prefill(*pad(rows, 0, left=True), 10)
        for step in range(6):
            plain = torch.cat([model(input_ids=torch.tensor([row])).logits[:, -1] for row in rows])
            assert torch.allclose(logits, plain, atol=1e-4), step
            if step == 2:
                keep = [3, 1]
                run.keep(torch.tensor(keep))
                rows, logits = [rows[i] for i in keep], logits[keep]
            tokens = torch.tensor([7 + step + i for i in range(len(rows))])
            rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
            logits = run.step(tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_laid_out_beforehand_gives_the_same_bits(dtype):
    torch.manual_seed(0)
    weight = torch.randn(96, 40, dtype=dtype)
    for shape in ((1, 40), (7, 40), (64, 40), (3, 5, 40)):
        x = torch.randn(*shape, dtype=dtype)
        assert torch.equal(product(weight)(x), torch.nn.functional.linear(x, weight))


def test_variants_of_llama_take_the_general_path(llama):
    assert is_plain_llama(llama())
    assert not is_plain_llama(llama(attention_bias=True)) and not is_plain_llama(
        llama(hidden_act="gelu")
    )


@pytest.mark.parametrize(
    "change", ["adapter", "hook", "forward", "bias", "activation", "precision"]
)
def test_a_modified_llama_takes_the_general_path(llama, change):
    model = llama()
    assert isinstance(stepper(model), LlamaStepper)
    layer = model.model.layers[1]
    if change == "adapter":  # injected without a wrapper around the model
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["down_proj"]), model)
    elif change == "hook":
        layer.register_forward_hook(lambda *args: None)
    elif change == "forward":
        layer.mlp.forward = layer.mlp.forward
    elif change == "bias":
        layer.mlp.down_proj.bias = torch.nn.Parameter(torch.ones(32))
    elif change == "activation":
        layer.mlp.act_fn = torch.nn.GELU()
    else:
        layer.mlp.down_proj.bfloat16()
    assert not is_plain_llama(model)


def test_weights_too_large_to_copy_are_used_as_they_are(llama, monkeypatch):
    model = llama()
    weights = sum(weight.nbytes for weight in model.parameters())
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4 * weights, "SC_PHYS_PAGES": 1}.get)
    assert isinstance(stepper(model), LlamaStepper)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4 * weights - 4, "SC_PHYS_PAGES": 1}.get)
    assert isinstance(stepper(model), AnyStepper)


@pytest.mark.parametrize("kind", [LlamaStepper, AnyStepper])
@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 3, 3], [1, 0, 3, 2], [2, 2], [0, 1, 3]])
def test_rows_can_repeat_and_change_places(llama, kind, rows):
    model = llama()
    run = kind(model)
    with torch.inference_mode():
        run.prefill(*pad(PROMPTS, 0, left=True), 4)
        run.keep(torch.tensor(rows))
        texts = [PROMPTS[row] for row in rows]
        for token in (6, 8):
            texts = [(*text, token + place) for place, text in enumerate(texts)]
            logits = run.step(torch.tensor([text[-1] for text in texts]))
            plain = torch.cat(
                [model(input_ids=torch.tensor([text])).logits[:, -1] for text in texts]
            )
            assert torch.allclose(logits, plain, atol=1e-4), token


def test_equal_prompts_are_computed_once_and_still_answered_apart(llama, monkeypatch):
    run = stepper(llama())
    asks = [Ask(PROMPTS[i % 3], 8, 1.0, 0, 1.0, seed=i) for i in range(12)]
    alone = [decode(run, [ask], NEVER)[0] for ask in asks]
    prefill, sizes = run.prefill, []
    monkeypatch.setattr(
        run, "prefill", lambda ids, mask, room: sizes.append(len(ids)) or prefill(ids, mask, room)
    )
    assert decode(run, asks, NEVER) == alone and sizes == [3]
    assert len({answer.tokens for answer in alone}) == 12


@pytest.mark.parametrize("kind", [LlamaStepper, AnyStepper])
def test_logits_that_are_not_numbers_end_their_row_alone(llama, kind):
    model = llama(tied=False)
    asks = [Ask((5, 6), 9, seed=1), Ask((7, 6), 9, seed=2), Ask((8,), 9, seed=3)]
    sound = decode(kind(model), asks, NEVER)
    others = {5, 6, 7, 8, *sound[0].tokens, *sound[2].tokens}
    at, token = next(
        (at, token) for at, token in enumerate(sound[1].tokens[:-1]) if token not in others
    )
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    answers = decode(kind(model), asks, NEVER)
    assert [answers[0], answers[2]] == [sound[0], sound[2]]
    assert (
        answers[1].tokens == sound[1].tokens[: at + 1]
        and answers[1].finish == "error"
        and "not numbers" in answers[1].error
    )


@pytest.mark.parametrize("kind", [LlamaStepper, AnyStepper])
def test_a_batch_that_is_too_large_runs_in_halves(llama, kind, monkeypatch):
    run = kind(llama())
    asks = [Ask(PROMPTS[i % 4], 2 + i, 1.0, 0, 1.0, seed=i) for i in range(9)]
    expected, on_progress = decode(run, asks, NEVER), []
    step = run.step

    def small(tokens):
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("no room\nfor more")
        return step(tokens)

    monkeypatch.setattr(run, "step", small)
    assert (
        decode(run, asks, NEVER, done=lambda number, answer: on_progress.append(number)) == expected
    )
    assert sorted(on_progress) == list(range(9))  # each row is reported once
    monkeypatch.setattr(run, "step", lambda tokens: small(range(9)))
    answers = decode(run, [*asks, Ask((5,), 1)], NEVER)
    assert {(answer.tokens, answer.error) for answer in answers[:-1]} == {
        ((), "out of memory for one request: no room")
    }
    assert answers[-1].finish == "length"  # needed no second step


def test_end_tokens_and_own_tests_stop_a_row(llama):
    model = llama()
    free = greedy_by_hand(model, PROMPTS[0], 12)
    end = free[4]
    first = free.index(end)
    ended, stopped, full = decode(
        stepper(model),
        [
            Ask(PROMPTS[0], 12, 0.0),
            Ask(PROMPTS[0], 12, 0.0, stopped=lambda new: len(new) == 2),
            Ask(PROMPTS[0], first, 0.0),
        ],
        frozenset({end}),
    )
    assert (ended.tokens, ended.finish) == (free[:first], "end")
    assert (stopped.tokens, stopped.finish) == (free[:2], "stopped") or first < 2
    assert (full.tokens, full.finish) == (free[:first], "length")
    assert decode(stepper(model), [Ask((5,), 0)], NEVER)[0].tokens == ()
    with pytest.raises(ValueError, match="row 1: found an empty prompt"):
        decode(stepper(model), [Ask((5,), 1), Ask((), 1)], NEVER)


def test_a_rows_seed_fixes_it_whatever_is_beside_it(llama):
    run = stepper(llama())
    asks = [Ask(PROMPTS[i % 4], 4 + i, 1.0, 0, 1.0, seed=i) for i in range(12)]
    together = decode(run, asks, frozenset({1}))
    assert decode(run, asks[::-1], frozenset({1}), batch_size=5)[::-1] == together
    assert [decode(run, [ask], frozenset({1}))[0] for ask in asks] == together
    other = [
        Ask(ask.prompt, ask.max_new_tokens, 1.0, 0, 1.0, seed=100 + i) for i, ask in enumerate(asks)
    ]
    assert decode(run, other, frozenset({1})) != together


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.6), (1.5, 6, 0.7)],
)
def test_draws_follow_the_models_distribution(llama, temperature, top_k, top_p):
    model = llama()
    with torch.no_grad():
        expected = (
            model(input_ids=torch.tensor([[5, 6]])).logits[0, -1].double() / temperature
        ).softmax(dim=0)
    order = expected.argsort(descending=True)
    if top_k:
        expected[order[top_k:]] = 0
        expected /= expected.sum()
    before = expected[order].cumsum(0) - expected[order]
    expected[order[before >= top_p]] = 0
    expected = (expected / expected.sum()).numpy()
    answers = decode(
        stepper(model),
        [Ask((5, 6), 1, temperature, top_k, top_p, seed=s) for s in range(4000)],
        NEVER,
        batch_size=500,
    )
    counts = np.bincount([answer.tokens[0] for answer in answers], minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    kept = expected * 4000 > 5
    statistic = ((counts[kept] - expected[kept] * 4000) ** 2 / (expected[kept] * 4000)).sum()
    assert statistic < stats.chi2.ppf(1 - 1e-6, max(kept.sum() - 1, 1)) and kept.sum() > 1


def test_adapters_are_folded_in_and_left_alone(llama, tokenizer):
    adapted = attach_lora(llama(), 4, 8)
    for parameter in trainable(adapted).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    assert isinstance(stepper(adapted), LlamaStepper)
    answers = decode(stepper(adapted), [Ask(prompt, 8, 0.0) for prompt in PROMPTS], NEVER)
    assert [answer.tokens for answer in answers] == [
        greedy_by_hand(adapted, prompt, 8) for prompt in PROMPTS
    ]
    assert trainable(adapted)


def test_sampled_texts(llama, tokenizer):
    model = llama()
    one = sample_texts(model, tokenizer, ["label good : ", "the"] * 6, 9, seed=3, precision="fp32")
    assert one == sample_texts(
        model, tokenizer, ["label good :", "the"] * 6, 9, seed=3, batch_size=5, precision="fp32"
    )
    assert one != sample_texts(
        model, tokenizer, ["label good :", "the"] * 6, 9, seed=4, precision="fp32"
    )
    assert len({sample.text for sample in one}) > 6  # equal prompts have streams of their own
    for sample in one:
        assert sample.tokens <= 9 and (sample.finished or sample.tokens == 9)
        assert (
            sample.text == sample.text.strip()
            and "<eos>" not in sample.text
            and not sample.text.startswith("label good :")
        )
    bf16 = sample_texts(model, tokenizer, ["the"] * 4, 9, seed=3, precision="bf16")
    assert len(bf16) == 4 and model.dtype == torch.float32
    assert sample_texts(model, tokenizer, [], 9) == []
    with pytest.raises(ValueError, match="3 tokens and max_new_tokens is 62; together at most 64"):
        sample_texts(model, tokenizer, ["label good :"], 62)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(
        RuntimeError, match="2 of 2 texts could not be sampled: the model's logits are not numbers"
    ):
        sample_texts(model, tokenizer, ["the", "label good :"], 9)


# -- Rows that come in while others go on ----------------------------------------------------------


def many(count=40):
    """Rows of uneven prompts, some alike, that end at uneven times which only they themselves
    know."""
    draws = np.random.default_rng(0)
    prompts = [
        tuple(draws.integers(4, 28, draws.integers(1, 9)).tolist()) for _ in range(count // 2)
    ] * 2
    lengths = draws.integers(1, 20, len(prompts)).tolist()

    def stops_at(length):
        return lambda new: len(new) == length

    rows = enumerate(zip(prompts, lengths, strict=True))
    return [
        Ask(prompt, 20, 1.0, 0, 1.0, seed=number, stopped=stops_at(length))
        for number, (prompt, length) in rows
    ]


@pytest.mark.parametrize("kv", [1, 2])
def test_waiting_rows_take_the_places_of_ended_ones_and_change_nothing(llama, kv, monkeypatch):
    run, asks = stepper(llama(kv=kv)), many()
    alone = [decode(run, [ask], NEVER)[0] for ask in asks]
    admit, step, prefill, sizes, admitted, begun = run.admit, run.step, run.prefill, [], [], []
    monkeypatch.setattr(
        run, "admit", lambda ids, mask, rows: admitted.append(len(rows)) or admit(ids, mask, rows)
    )
    monkeypatch.setattr(run, "step", lambda tokens: sizes.append(len(tokens)) or step(tokens))
    monkeypatch.setattr(
        run, "prefill", lambda ids, mask, room: begun.append(len(ids)) or prefill(ids, mask, room)
    )
    assert decode(run, asks, NEVER, batch_size=8) == alone
    assert len(begun) == 1 and sum(admitted) == 32 and max(sizes) == 8
    busy = len(sizes) - 20  # the last rows have nobody to follow them
    assert np.mean(sizes[:busy]) > 7


def test_a_cache_moves_to_its_beginning_as_often_as_it_must(llama, monkeypatch):
    run, asks, moves = stepper(llama()), many(80), []
    alone = [decode(run, [ask], NEVER)[0] for ask in asks]
    move = run._move_to_the_beginning
    monkeypatch.setattr(run, "_move_to_the_beginning", lambda: moves.append(run._first) or move())
    assert decode(run, asks, NEVER, batch_size=4) == alone
    assert len(moves) > 3 and min(moves) > 32


def test_a_row_after_one_whose_numbers_broke_is_sound(llama):
    """The place of a row that is not a number is taken by another: nothing of it shows through the
    mask."""
    model = llama(tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[3] = float("nan")
    asks = [
        Ask((6, 8, 9, 9, 7), 9, seed=2),
        Ask((5, 3, 7, 7), 9, seed=1),
        *(Ask((9, number), 9, seed=number) for number in range(4, 12)),
    ]
    sound = [decode(stepper(model), [ask], NEVER)[0] for ask in asks]
    answers = decode(stepper(model), asks, NEVER, batch_size=2)
    assert answers == sound and [answer.finish for answer in answers[:2]] == ["length", "error"]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_share_the_rows_and_the_weights(llama, two_threads, monkeypatch):
    run, asks, on_progress, threads = stepper(llama()), many(), [], set()
    alone = [decode(run, [ask], NEVER)[0] for ask in asks]
    step = LlamaStepper.step
    monkeypatch.setattr(
        LlamaStepper,
        "step",
        lambda self, tokens: threads.add((threading.get_ident(), id(self))) or step(self, tokens),
    )
    assert (
        decode(
            run, asks, NEVER, batch_size=8, done=lambda number, answer: on_progress.append(number)
        )
        == alone
    )
    assert sorted(on_progress) == list(range(40)) and len(threads) == 2
    assert torch.get_num_threads() == 2


def test_a_failure_in_one_thread_ends_all_and_is_told(llama, two_threads):
    def fails(number, answer):
        raise KeyError("the disk is full")

    with pytest.raises(KeyError, match="the disk is full"):
        decode(stepper(llama()), many(), NEVER, batch_size=8, done=fails)
    assert torch.get_num_threads() == 2


def test_where_tokens_are_limited_more_short_rows_than_long_ones_run_at_once(llama, monkeypatch):
    run, sizes = stepper(llama()), []
    asks = [Ask((5,) * 20, 10, seed=i) for i in range(4)] + [
        Ask((6, i), 4, seed=i) for i in range(20)
    ]
    step = run.step
    monkeypatch.setattr(run, "step", lambda tokens: sizes.append(len(tokens)) or step(tokens))
    answers = decode(run, asks, NEVER, batch_size=None, batch_tokens=60)
    assert max(sizes[:18]) == 2 and max(sizes) == 10  # 60 / 30 and 60 / 6
    assert answers == [decode(stepper(llama()), [ask], NEVER)[0] for ask in asks]
    sizes.clear()
    decode(run, asks, NEVER, batch_size=None, batch_tokens=1000)
    assert max(sizes) == 24  # there is room for all
