"""Writers on real tiny models, and on remote LLMs that fail in every way."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from fedduet.clients.vault.answering.config import SearchConfig
from fedduet.clients.vault.answering.search import search_many
from fedduet.clients.vault.answering.solving import Form
from fedduet.clients.vault.answering.steps import Step, StepAsk
from fedduet.clients.vault.answering.whole_steps import Completed, FallbackWriter, WholeStepWriter
from fedduet.clients.vault.answering.writers import TokenWriter, local_writers
from fedduet.lm.decoding.decode import Ask, decode
from fedduet.lm.decoding.fusion import proxy_tuned, slm_pair
from fedduet.lm.decoding.stepper import stepper
from fedduet.lm.models.batch import encode_prompt
from fedduet.lm.models.load import attach_lora, load_causal_lm, load_tokenizer, trainable

QUESTIONS = ["the grinder", "a very good tent and", "coffee is", "no", "it was fine"]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    """A tokenizer, a large LM and a small one with an adapter: random weights, an even spread over
    tokens."""
    tokenizer = load_tokenizer(tiny_model, generates=True)
    models = [load_causal_lm(tiny_model, tokenizer=tokenizer) for _ in range(2)]
    for seed, model in enumerate(models):
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn(weight.shape, generator=drawn) * 0.2)
    tuned = attach_lora(models[1], 4, 8)
    for weight in trainable(tuned).values():
        torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(9))
    return tokenizer, models[0], tuned


@pytest.fixture(scope="module")
def local(loaded):
    tokenizer, llm, tuned = loaded
    return local_writers((tuned, tokenizer), llm=(llm, tokenizer), alpha=0.8)


def asks(count=10, tokens=12, **more):
    return [StepAsk(f"{QUESTIONS[i % 5]}\n", i, tokens, **more) for i in range(count)]


def test_a_step_ends_at_the_delimiter_the_end_or_the_cap(loaded):
    tokenizer, llm, _ = loaded
    ends = set(range(20, 60))

    def read(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True)

    writer = TokenWriter(stepper(llm), tokenizer, ends, 256, llm=1, delimiter="e")
    steps = writer.write(asks(60))
    raw = decode(
        stepper(llm),
        [
            Ask(tuple(tokenizer(ask.prefix)["input_ids"]), 12, 0.7, 0, 1.0, ask.seed)
            for ask in asks(60)
        ],
        set(),
    )
    for step, free in zip(steps, raw, strict=True):
        kept = []
        for token in free.tokens:
            kept.append(token)
            if token in ends or "e" in read([token]):
                break
        last = kept[-1]
        end = "end" if last in ends else "delimiter" if "e" in read([last]) else "length"
        text = read(kept[:-1] if last in ends else kept).partition("e")[0].strip()
        assert (step.end, step.text, step.llm_tokens, step.slm_tokens) == (end, text, len(kept), 0)
    assert {step.end for step in steps} == {"delimiter", "end", "length"}
    assert writer.room("a a\n") == 256 - len(tokenizer("a a\n")["input_ids"])
    # the delimiter is part of what is continued
    assert len(encode_prompt(tokenizer, "a a\n")) < len(tokenizer("a a\n")["input_ids"])


def test_an_end_token_that_the_tokenizer_adds_is_not_continued(loaded):
    tokenizer, llm, _ = loaded

    class Ending:
        eos_token_id, decode = tokenizer.eos_token_id, tokenizer.decode

        def __call__(self, text, **options):
            return {"input_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]}

    plain, ending = (
        TokenWriter(stepper(llm), kind, {tokenizer.eos_token_id}, 256, llm=1)
        for kind in (tokenizer, Ending())
    )
    assert ending.write(asks()) == plain.write(asks()) and ending.room("a\n") == plain.room("a\n")


def test_modes_of_local_models(loaded, local):
    tokenizer, llm, tuned = loaded
    assert set(local) == {"private", "base", "llm", "collaborative", "average"}
    runs = {
        "private": stepper(tuned),
        "llm": stepper(llm),
        "collaborative": proxy_tuned(stepper(llm), slm_pair(tuned), 0.8),
    }
    per_token = {
        "private": (0, 1),
        "base": (0, 1),
        "llm": (1, 0),
        "collaborative": (1, 2),
        "average": (1, 1),
    }
    texts = {}
    for mode, writer in local.items():
        steps = writer.write(asks())
        texts[mode] = [step.text for step in steps]
        drawn = [(step.llm_tokens, step.slm_tokens) for step in steps]
        count = [max(pair) // max(per_token[mode]) for pair in drawn]
        assert (
            drawn == [(n * per_token[mode][0], n * per_token[mode][1]) for n in count]
            and min(count) > 0
        )
        if mode in runs:
            alone = TokenWriter(runs[mode], tokenizer, {tokenizer.eos_token_id}, 256)
            assert [alone.write([ask])[0].text for ask in asks()] == texts[mode]
    assert len({tuple(found) for found in texts.values()}) == 5


def test_whole_solutions_end_at_a_final_line(loaded):
    tokenizer, llm, _ = loaded
    writer = TokenWriter(
        stepper(llm), tokenizer, set(), 256, llm=1, delimiter="e", final=lambda line: "t" in line
    )
    found = set()
    for step in writer.write(asks(40, 40, whole=True)):
        *lines, last = step.text.split("e")
        assert all("t" not in line for line in lines) and (step.end == "length" or "t" in last)
        found.add(step.end)
    assert found == {"end", "length"}


def test_vocabularies_are_checked(loaded, tiny_model):
    tokenizer, llm, tuned = loaded
    other = load_tokenizer(tiny_model, generates=True)
    other.add_tokens(["<more>"])
    with pytest.raises(ValueError, match="the private SLM and the LLM have different vocabularies"):
        local_writers((tuned, tokenizer), llm=(llm, other))


# ---------------------------------------------------------------- failing remotes


class Fixed:
    """Writes "own" always."""

    def __init__(self):
        self.asked = 0

    def room(self, prefix):
        return 100

    def write(self, asks):
        self.asked += len(asks)
        return [Step("own", "delimiter", slm_tokens=2) for _ in asks]


def complete(text="a step\nmore", tokens=4, ended=False):
    return lambda asks, stop: [Completed(text, tokens, ended) for _ in asks]


def raising(failure):
    def call(asks, stop):
        raise failure

    return call


FAILING = {
    "exception": (raising(ValueError("<html>")), "ValueError"),
    "unreachable": (raising(ConnectionRefusedError("no")), "ConnectionRefusedError"),
    "slow": (lambda asks, stop: time.sleep(30), "TimeoutError"),
    "empty": (complete("", 1), "EmptyStep"),
    "blank": (complete(" \nx", 3), "EmptyStep"),
    "too many tokens": (complete(tokens=99), "Lie"),
    "too few answers": (lambda asks, stop: [], "ConnectionError"),
    "no completions": (lambda asks, stop: ["text"] * len(asks), "Lie"),
    "no text": (complete(None), "Lie"),
    "not a list": (lambda asks, stop: None, "TypeError"),
}


@pytest.mark.parametrize("how", FAILING)
def test_what_the_remote_fails_to_write_is_written_privately(how):
    call, reason = FAILING[how]
    own = Fixed()
    writer = FallbackWriter(WholeStepWriter(call, seconds=0.2), own)
    start = time.monotonic()
    steps = writer.write(asks(3))
    assert time.monotonic() - start < 5
    assert [(step.text, step.end, step.degraded, step.slm_tokens) for step in steps] == [
        ("own", "delimiter", True, 2)
    ] * 3
    assert (
        writer.failures == {reason: 3}
        and all(step.error.startswith(reason) for step in steps)
        and own.asked == 3
    )


def test_only_what_failed_is_written_privately():
    def call(asks, stop):
        return [Completed("", 0) if ask.seed == 1 else Completed(f"s{ask.seed}", 2) for ask in asks]

    own = Fixed()
    writer = FallbackWriter(WholeStepWriter(call), own)
    assert [step.text for step in writer.write(asks(4))] == [
        "s0",
        "own",
        "s2",
        "s3",
    ] and own.asked == 1
    assert writer.failures == {"EmptyStep": 1} and writer.write([]) == []


def test_whole_steps():
    seen = []

    def call(asks, stop):
        seen.append((list(asks), stop))
        return [Completed(text, tokens, ended) for text, tokens, ended in answers]

    answers = [
        ("one\ntwo", 5, False),
        ("one", 3, True),
        ("one", 12, False),
        ("one", 7, False),
        ("", 1, True),
    ]
    writer = WholeStepWriter(call, context=50)
    steps = writer.write(asks(5))
    assert seen == [(asks(5), "\n")]
    assert [(step.text, step.end, step.llm_tokens) for step in steps] == [
        ("one", "delimiter", 5),
        ("one", "end", 3),
        ("one", "length", 12),
        ("one", "delimiter", 7),
        ("", "end", 1),
    ]
    assert writer.room("x" * 30) == 40
    assert all(not step.degraded for step in FallbackWriter(writer, Fixed()).write(asks(5)))


def test_a_remote_that_always_fails_is_left_alone_for_a_while():
    now, calls, broken = [0.0], [], [True]

    def call(asks, stop):
        calls.append(len(asks))
        if broken[0]:
            raise ConnectionResetError("gone")
        return [Completed("back", 1) for _ in asks]

    writer = FallbackWriter(
        WholeStepWriter(call), Fixed(), patience=2, rest=10, clock=lambda: now[0]
    )
    for _ in range(5):
        assert writer.write(asks(2))[0].degraded
    assert len(calls) == 2 and writer.failures == {"ConnectionResetError": 4, "NotAsked": 6}
    now[0], broken[0] = 10.0, False
    assert [step.text for step in writer.write(asks(2))] == ["back"] * 2


class Remote:
    """The stepper of a remote LLM: a real one that fails at the third step."""

    compact_at = 1.0

    def __init__(self, run, how):
        self.run, self.how, self.steps = run, how, 0

    def prefill(self, ids, mask, room):
        return self.run.prefill(ids, mask, room)

    def keep(self, rows):
        self.run.keep(rows)

    def step(self, tokens):
        self.steps += 1
        logits = self.run.step(tokens)
        if self.steps < 3:
            return logits
        if self.how == "raises":
            raise TimeoutError("no answer within 5 s")
        logits[0] = float("nan")
        return logits


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_fusion_with_a_failing_remote_llm(loaded, local, how):
    tokenizer, llm, tuned = loaded
    remote = Remote(stepper(llm), how)
    fused = TokenWriter(
        proxy_tuned(remote, slm_pair(tuned), 0.8), tokenizer, {tokenizer.eos_token_id}, 256, 1, 2
    )
    ready = [StepAsk("the\n", 1, 2), *asks(4, 12)]  # the first is done before it fails
    sound = [local["collaborative"].write([ask])[0] for ask in ready]
    steps = FallbackWriter(fused, local["private"]).write(ready)
    bad = [number for number, step in enumerate(steps) if step.degraded]
    assert bad == ([1, 2, 3, 4] if how == "raises" else bad) and bad and 0 not in bad
    own = local["private"].write(ready)
    for number, step in enumerate(steps):
        assert (step.text, step.end) == (
            (own if number in bad else sound)[number].text,
            (own if number in bad else sound)[number].end,
        )
        assert (
            not step.degraded
            or ("no answer within" if how == "raises" else "not numbers") in step.error
        )


def test_a_question_survives_a_dead_remote(local):
    form = Form(
        prompt=lambda question, steps: "\n".join([question, *steps, ""]),
        answer=lambda text: text or None,
    )
    config = SearchConfig(iterations=3, step_tokens=6, max_steps=3)
    writers = {
        "private": local["private"],
        "collaborative": FallbackWriter(
            WholeStepWriter(raising(OSError("gone"))), local["private"]
        ),
    }

    class Half:
        def score(self, states):
            return [0.5] * len(states)

    solutions = search_many(QUESTIONS, range(5), writers, Half(), form, config)
    for solution in solutions:
        assert solution.costs.llm_tokens == 0 and solution.costs.degraded >= 4 and solution.text
        assert {node["mode"] for node in solution.nodes[1:]} == {"private"}
        assert all(step.mode == "private" for step in solution.steps)
    assert threading.active_count() < 20


# ---------------------------------------------------------------- searches on real models


def test_searches_side_by_side_equal_one_by_one_on_real_models(local):
    form = Form(
        prompt=lambda question, steps: "\n".join([question, *steps, ""]),
        answer=lambda text: text or None,
    )
    config = SearchConfig(iterations=4, step_tokens=6, max_steps=3, parallel=2, llm_token_budget=60)

    class Length:
        def score(self, states):
            return [len("".join(steps)) % 7 / 7 for _, steps in states]

    many = search_many(QUESTIONS, range(5), local, Length(), form, config)
    alone = [
        search_many([q], [i], local, Length(), form, config)[0] for i, q in enumerate(QUESTIONS)
    ]
    assert [replace(solution, seconds=0) for solution in many] == [
        replace(solution, seconds=0) for solution in alone
    ]
    assert {node["mode"] for solution in many for node in solution.nodes[1:]} == {
        "private",
        "collaborative",
    }
    assert all(0 < solution.costs.llm_tokens <= 60 for solution in many)
    with pytest.raises(
        ValueError,
        match=(
            "question 0: too long for the models' context; room is left for 0 tokens, a step may"
            " take 6"
        ),
    ):
        search_many(["word " * 300], [0], local, Length(), form, config)
