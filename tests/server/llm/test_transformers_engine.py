"""The local engine: sampling that ignores its neighbours, endings, padding, errors of single
requests, exact scores."""

import collections
import copy
import dataclasses

import pytest
import torch
from fedduet.lm.decoding.llama import LlamaStepper, is_plain_llama
from fedduet.server.llm import transformers_engine
from fedduet.server.llm.base import LLM, ChatTurn, Request, ScoresText
from fedduet.server.llm.transformers_engine import TransformersLLM
from peft import LoraConfig, get_peft_model

PROMPTS = [
    "the camera",
    "I would not buy this phone again .",
    "good",
    "battery is bad and the",
    "é",
    "0 1 2 3",
    "the phone takes",
]


def engine(model, tokenizer, **changes):
    return TransformersLLM(
        model, tokenizer, **({"name": "tiny", "form": "completion", "context": 128} | changes)
    )


def greedy_by_hand(model, tokenizer, prompt, steps):
    """Without cache, padding or batch: one full forward pass per token, until the end token."""
    tokens = list(tokenizer(prompt)["input_ids"])
    length = len(tokens)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[length:])


def test_it_is_an_llm_that_scores(llama, tokenizer):
    llm = engine(llama, tokenizer)
    assert isinstance(llm, LLM) and isinstance(llm, ScoresText)
    assert llm.parameters == sum(p.numel() for p in llama.parameters())
    assert llm.count_tokens("the camera") == len(tokenizer("the camera")["input_ids"])


def test_greedy_in_a_padded_batch_equals_greedy_by_hand(model, tokenizer):
    answers = engine(model, tokenizer).generate(
        [Request(p, max_new_tokens=12 + i, temperature=0) for i, p in enumerate(PROMPTS)]
    )
    expected = [greedy_by_hand(model, tokenizer, p, 12 + i) for i, p in enumerate(PROMPTS)]
    assert [answer.text for answer in answers] == expected
    assert [answer.prompt_tokens for answer in answers] == [
        len(tokenizer(p)["input_ids"]) for p in PROMPTS
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.7, "temperature": 0.8}]
)
def test_an_answer_does_not_depend_on_its_batch(model, tokenizer, changes):
    llm = engine(model, tokenizer)
    requests = [Request(p, max_new_tokens=20, seed=i, **changes) for i, p in enumerate(PROMPTS)]
    together = llm.generate(requests)
    assert together == [llm.generate([request])[0] for request in requests]
    assert together == llm.generate(requests[::-1])[::-1]
    # batches of one or two
    assert together == engine(model, tokenizer, batch_tokens=60).generate(requests)
    other = llm.generate(
        [dataclasses.replace(request, seed=request.seed + 100) for request in requests]
    )
    assert sum(a.text != b.text for a, b in zip(together, other, strict=True)) >= 6


def test_the_sampled_distribution_is_the_models(llama, tokenizer):
    """First tokens of 3,000 seeds against the exact probabilities: total variation near what 3,000
    draws give."""
    with torch.no_grad():
        logits = llama(tokenizer("the camera", return_tensors="pt")["input_ids"]).logits[0, -1]
    kept = logits.topk(10)
    exact = torch.softmax(kept.values / 0.8, dim=0)
    answers = engine(llama, tokenizer).generate(
        [Request("the camera", 1, 0.8, top_k=10, seed=i) for i in range(3000)]
    )
    expected = collections.Counter()
    for token, probability in zip(kept.indices.tolist(), exact.tolist(), strict=True):
        # half characters look alike
        expected[tokenizer.decode([token], skip_special_tokens=True)] += probability
    assert len(expected) > 5
    counts = collections.Counter(answer.text for answer in answers)
    assert set(counts) <= set(expected)
    assert sum(abs(counts[text] / 3000 - expected[text]) for text in expected) / 2 < 0.04


def test_the_end_token_ends_the_text_and_is_counted(llama, tokenizer):
    answers = engine(llama, tokenizer).generate(
        [Request("the camera", max_new_tokens=100, temperature=3.0, seed=i) for i in range(60)]
    )
    stopped = [answer for answer in answers if answer.finish == "stop"]
    assert stopped and {answer.finish for answer in answers} == {"stop", "length"}
    assert all("endoftext" not in answer.text for answer in answers)
    assert all((answer.new_tokens == 100) for answer in answers if answer.finish == "length")
    shortest = min(stopped, key=lambda answer: answer.new_tokens)
    assert shortest.new_tokens < 100
    if "\ufffd" not in shortest.text:
        assert shortest.new_tokens >= len(tokenizer(shortest.text)["input_ids"]) + 1


def test_end_tokens_of_the_generation_config_count_too(llama, tokenizer):
    plain = engine(llama, tokenizer).generate([Request("good", max_new_tokens=20, seed=1)])[0]
    first = tokenizer(plain.text)["input_ids"][0]
    llama.generation_config.eos_token_id = [0, first]
    try:
        stopped = engine(llama, tokenizer).generate([Request("good", max_new_tokens=20, seed=1)])[0]
    finally:
        llama.generation_config.eos_token_id = 0
    assert (stopped.text, stopped.new_tokens, stopped.finish) == (
        "",
        1,
        "stop",
    ) and plain.new_tokens > 1


def test_stop_strings_cut_before_themselves_and_save_tokens(model, tokenizer):
    llm = engine(model, tokenizer)
    wholes = llm.generate(
        [Request("the camera", max_new_tokens=40, seed=seed) for seed in range(40)]
    )
    checked = 0
    for seed, whole in enumerate(wholes):
        at = len(whole.text) // 2
        stop = whole.text[at : at + 3]  # seldom a whole number of tokens
        if whole.finish == "length" and len(stop) == 3 and "\ufffd" not in stop:
            cut = llm.generate(
                [Request("the camera", max_new_tokens=40, seed=seed, stop=("never there", stop))]
            )[0]
            at = whole.text.index(stop)
            assert (cut.text, cut.finish) == (whole.text[:at], "stop")
            assert cut.new_tokens < 40 and cut.new_tokens <= len(whole.text[: at + 4].encode())
            checked += 1
    assert checked >= 5


def test_the_earliest_of_several_stop_strings_cuts(llama, tokenizer):
    llm = engine(llama, tokenizer)
    texts = [
        answer.text
        for answer in llm.generate(
            [Request("the camera", max_new_tokens=10, seed=seed) for seed in range(200)]
        )
    ]
    seed, text = next(
        (i, text)
        for i, text in enumerate(texts)
        if len(set(text[:6])) == 6 and "\ufffd" not in text[:6]
    )
    answer = llm.generate(
        [
            Request(
                "the camera", max_new_tokens=10, seed=seed, stop=(text[5], text[3:5], text[4], "")
            )
        ]
    )[0]
    assert (answer.text, answer.finish) == (text[:3], "stop")


def test_a_tokenizer_without_end_or_pad_token_runs_to_the_length(llama, tokenizer_without_end):
    assert tokenizer_without_end.eos_token_id is None and tokenizer_without_end.pad_token_id is None
    llama.generation_config.eos_token_id = None
    try:
        answers = engine(llama, tokenizer_without_end).generate(
            [Request(p, max_new_tokens=15, seed=3) for p in PROMPTS]
        )
        empty = engine(llama, tokenizer_without_end).generate([Request("", max_new_tokens=5)])[0]
    finally:
        llama.generation_config.eos_token_id = 0
    assert [(answer.new_tokens, answer.finish) for answer in answers] == [(15, "length")] * len(
        PROMPTS
    )
    assert empty.finish == "error" and "empty" in empty.error


def test_requests_that_cannot_run_fail_alone(llama, tokenizer):
    llm = engine(llama, tokenizer, context=40)
    good = Request("the camera", max_new_tokens=10, seed=5)
    length = llm.count_tokens("camera " * 20)
    bad = [
        Request("camera " * 20, max_new_tokens=10),
        Request((ChatTurn("user", "hello"),)),
        Request("good", max_new_tokens=0),
        Request("good", top_p=0.0),
    ]
    seen = []
    answers = llm.generate([bad[0], good, *bad[1:]], lambda *state: seen.append(state))
    assert [answer.finish == "error" for answer in answers] == [True, False, True, True, True]
    assert (
        f"{length} tokens and max_new_tokens is 10" in answers[0].error
        and "context of 40 tokens" in answers[0].error
    )
    assert answers[0].text == "" and answers[0].new_tokens == 0
    assert (
        "chat" in answers[2].error
        and "max_new_tokens: found 0" in answers[3].error
        and "top_p 0.0" in answers[4].error
    )
    assert answers[1] == llm.generate([good])[0]
    assert seen[-1] == (5, 5, answers[1].new_tokens) and [state[0] for state in seen] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_a_prompt_that_just_fits_the_context_runs(model, tokenizer):
    llm = engine(model, tokenizer)
    length = llm.count_tokens("camera " * 10)
    assert (
        llm.generate([Request("camera " * 10, max_new_tokens=128 - length, temperature=0)])[
            0
        ].finish
        != "error"
    )
    assert (
        llm.generate([Request("camera " * 10, max_new_tokens=129 - length, temperature=0)])[
            0
        ].finish
        == "error"
    )


def test_chat_prompts_go_through_the_template(llama, tokenizer):
    templated = copy.deepcopy(tokenizer)
    templated.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if"
        " add_generation_prompt %}:{% endif %}"
    )
    llm = engine(llama, templated, form="chat")
    turns = (ChatTurn("system", "be good"), ChatTurn("user", "the phone"))
    plain = engine(llama, tokenizer)
    expected = plain.generate(
        [Request("<system>be good<user>the phone:", max_new_tokens=20, seed=4)]
    )[0]
    assert llm.generate([Request(turns, max_new_tokens=20, seed=4)])[0] == expected
    one = plain.generate([Request("<user>good:", max_new_tokens=20, seed=4)])[0]
    # a string is one user turn
    assert llm.generate([Request("good", max_new_tokens=20, seed=4)])[0] == one


def test_guidance_pushes_away_from_the_contrast(model, tokenizer):
    """Token by token as the formula says, beside requests without guidance and with another one."""
    pairs = list(zip(PROMPTS, PROMPTS[1:] + PROMPTS[:1], strict=True))
    requests = [
        Request(prompt, 6 + i, 0, contrast=contrast, guidance=gamma)
        for gamma in (0.0, 1.5)
        for i, (prompt, contrast) in enumerate(pairs)
    ] + [Request(prompt, 6 + i, 0) for i, prompt in enumerate(PROMPTS)]
    llm = engine(model, tokenizer, batch_tokens=200)  # so that rows have to wait for others
    texts = [answer.text for answer in llm.generate(requests)]
    expected = []
    for i, (prompt, contrast) in enumerate(pairs):
        sides, new = [tokenizer(text)["input_ids"] for text in (prompt, contrast)], []
        for _ in range(6 + i):
            with torch.no_grad():
                wanted, other = (model(torch.tensor([side + new])).logits[0, -1] for side in sides)
            token = int((wanted + 1.5 * (wanted - other)).argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        expected.append(tokenizer.decode(new))
    assert texts[7:14] == expected != texts[:7]
    assert texts[:7] == texts[14:]  # guidance 0 is the prompt alone


def test_guidance_that_cannot_run_is_an_error(llama, tokenizer):
    answers = engine(llama, tokenizer).generate(
        [
            Request("good", 4, guidance=1.0),
            Request("good", 4, contrast="bad", guidance=-0.5),
            Request("good", 4, contrast=(ChatTurn("user", "bad"),), guidance=1.0),
            Request("good", 4, contrast="the " * 200, guidance=1.0),
            Request("good", 4, contrast="bad", guidance=1.0),
        ]
    )
    assert [answer.finish == "error" for answer in answers] == [True] * 4 + [False]
    assert "found guidance 1.0 and no contrast; allowed: guidance >= 0" in answers[0].error
    assert "found guidance -0.5 and a contrast" in answers[1].error
    assert "chat" in answers[2].error and "more than the context" in answers[3].error


def test_memory_that_runs_out_halves_the_batch(llama, tokenizer, monkeypatch):
    llm = engine(llama, tokenizer)
    requests = [Request(p, max_new_tokens=25, seed=i) for i, p in enumerate(PROMPTS)]
    expected = llm.generate(requests)
    run, sizes = LlamaStepper._run, []

    def small_device(self, ids, *inputs):
        sizes.append(len(ids))
        if len(ids) > 2 and len(sizes) % 3 == 0:  # in the middle of decoding
            raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")
        return run(self, ids, *inputs)

    monkeypatch.setattr(LlamaStepper, "_run", small_device)
    assert llm.generate(requests) == expected and sizes[0] == 7 and {2, 3, 4} & set(sizes)

    def no_device(self, *inputs):
        raise torch.OutOfMemoryError("out of memory: tried to allocate 9 GiB")

    monkeypatch.setattr(LlamaStepper, "_run", no_device)
    answers = llm.generate(requests)
    assert all(answer.finish == "error" and "9 GiB" in answer.error for answer in answers)


def test_the_weights_of_the_moment_decode(llama, tokenizer):
    """In-place training, adapters and merging between calls all show."""
    llm, request = (
        engine(copy.deepcopy(llama), tokenizer),
        Request("good", max_new_tokens=20, temperature=0),
    )
    base = llm.model

    def by_hand():
        return greedy_by_hand(llm.model, tokenizer, "good", 20)

    texts = [llm.generate([request])[0].text]
    assert texts[-1] == by_hand()
    base.lm_head.weight.data.mul_(-1)
    texts.append(llm.generate([request])[0].text)
    assert texts[-1] == by_hand()
    llm.model = get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False
        ),
    ).eval()
    texts.append(llm.generate([request])[0].text)
    assert texts[-1] == by_hand()
    llm.model = llm.model.merge_and_unload()
    assert llm.model is base and is_plain_llama(base)
    assert llm.generate([request])[0].text == by_hand() and len(set(texts)) == 3


def test_logits_that_are_not_numbers_are_an_error(tokenizer, llama):
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    answer = engine(broken, tokenizer).generate([Request("good", max_new_tokens=5)])[0]
    assert answer.finish == "error" and answer.text == "" and "not numbers" in answer.error


def score_by_hand(model, tokenizer, tokens, start):
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), dim=-1)
    return sum(float(logprobs[at - 1, tokens[at]]) for at in range(start, len(tokens)))


def test_scores_equal_brute_force_row_by_row(model, tokenizer, monkeypatch):
    pairs = [
        (a, " " + b) for a in PROMPTS[:4] for b in ("good", "bad and the battery is bad .", "日本")
    ]
    expected = []
    for prompt, continuation in pairs:
        start, tokens = (
            len(tokenizer(prompt)["input_ids"]),
            tokenizer(prompt + continuation)["input_ids"],
        )
        assert tokens[:start] == tokenizer(prompt)["input_ids"]  # these boundaries are clean
        expected.append(score_by_hand(model, tokenizer, tokens, start))
    llm = engine(model, tokenizer)
    assert llm.continuation_logprobs(pairs) == pytest.approx(expected, abs=1e-3)
    # a few rows, then one, at a time
    monkeypatch.setattr(transformers_engine, "LOGITS_BYTES", 4 * 300 * 8)
    seen = []
    assert llm.continuation_logprobs(pairs, lambda *state: seen.append(state)) == pytest.approx(
        expected, abs=1e-3
    )
    assert seen[-1] == (12, 12, 0) and len(seen) > 3


def test_a_token_across_the_boundary_belongs_to_the_continuation(llama, tokenizer):
    llm = engine(llama, tokenizer)
    tokens = tokenizer("good battery")["input_ids"]
    start = len(tokenizer("good")["input_ids"])
    assert tokenizer.decode(tokens[start]) == " ba"  # spans "good " | "battery"
    across, clean = llm.continuation_logprobs([("good ", "battery"), ("good", " battery")])
    assert (
        across
        == pytest.approx(clean, abs=1e-5)
        == pytest.approx(score_by_hand(llama, tokenizer, tokens, start), abs=1e-3)
    )


def test_scores_at_the_edges(llama, tokenizer, tokenizer_without_end):
    llm = engine(llama, tokenizer, context=40)
    first, empty = llm.continuation_logprobs([("", "the camera"), ("the camera", "")])
    assert empty == 0.0
    assert first == pytest.approx(
        score_by_hand(llama, tokenizer, [0, *tokenizer("the camera")["input_ids"]], 1), abs=1e-3
    )
    with pytest.raises(ValueError, match=r"pair 1: found \d+ tokens, allowed: the context of 40"):
        llm.continuation_logprobs([("the", " camera"), ("the", " camera" * 40)])
    with pytest.raises(ValueError, match="pair 0: the prompt is empty"):
        engine(llama, tokenizer_without_end).continuation_logprobs([("", "the camera")])


def test_an_adapted_model_generates_and_scores(llama, tokenizer):
    llm = engine(copy.deepcopy(llama), tokenizer)
    before = llm.generate([Request("good", max_new_tokens=20, temperature=0)])[0]
    llm.model = get_peft_model(
        llm.model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    ).eval()
    # B is zero at the start
    assert llm.generate([Request("good", max_new_tokens=20, temperature=0)])[0] == before
    plain = llm.continuation_logprobs([("the", " camera")])[0]
    with torch.no_grad():
        for name, weight in llm.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    tokens, start = tokenizer("the camera")["input_ids"], len(tokenizer("the")["input_ids"])
    adapted = llm.continuation_logprobs([("the", " camera")])[0]
    assert (
        adapted == pytest.approx(score_by_hand(llm.model, tokenizer, tokens, start), abs=1e-3)
        and abs(adapted - plain) > 0.1
    )
