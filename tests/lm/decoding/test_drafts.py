"""Drafts keep the law of direct fused sampling: exactly, by the chi-square of whole sequences, and
greedily token by token."""

import copy
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from fedduet.lm.decoding.decode import NOT_NUMBERS, Ask, decode
from fedduet.lm.decoding.drafts import Following, decode_drafts
from fedduet.lm.decoding.fusion import proxy_tuned, slm_pair
from fedduet.lm.decoding.stepper import stepper
from fedduet.lm.models.batch import pad
from scipy import stats

NEVER = frozenset({-1})
SIZE, END = 5, 4  # tokens of the toy, and the one that ends a text


class Table:
    """A toy causal LM as a stepper: the next token's logits depend on the last two tokens only."""

    compact_at = 1.0

    def __init__(self, seed):
        self.logits = (
            torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 1.2
        )

    def prefill(self, ids, mask, room):
        self.before, self.last = ids[:, -2], ids[:, -1]
        return self.logits[self.before, self.last]

    def step(self, tokens):
        self.before, self.last = self.last, tokens
        return self.logits[self.before, self.last]

    def keep(self, rows):
        self.before, self.last = self.before[rows], self.last[rows]


def looking(table, k=SIZE, seen=None):
    """The table as a far LLM that gives its k likeliest tokens; `seen` collects what it was
    asked."""
    logprobs = table.logits.log_softmax(dim=-1)

    def score_drafts(rows, heads):
        if seen is not None:
            seen.append(list(rows))
        found = []
        for row, head in zip(rows, heads, strict=True):
            values, tokens = torch.stack(
                [logprobs[row[i - 2], row[i - 1]] for i in range(head, len(row) + 1)]
            ).topk(k)
            found.append(Following(tokens, values))
        return found

    return score_drafts


def distribution(llm, tuned, base, before, last, alpha, temperature, top_p, k, rest):
    """The fused next-token probabilities, from the formula in plain numpy."""
    z_llm, z_tuned, z_base = (
        table.logits[before, last].double().numpy() for table in (llm, tuned, base)
    )
    fused = z_llm + alpha * (z_tuned - z_base)
    outside = np.argsort(-z_llm)[k:]
    fused[outside] = -math.inf
    if rest == "base" and k < SIZE:
        left = np.exp(z_llm)[outside].sum() / np.exp(z_llm).sum()
        spread = np.log(left) + z_base - np.log(np.exp(z_base)[outside].sum())
        fused[outside] = (spread + np.log(np.exp(z_llm).sum()) + alpha * (z_tuned - z_base))[
            outside
        ]
    weights = np.exp((fused - fused.max()) / temperature)
    weights /= weights.sum()
    kept, total = np.zeros(SIZE), 0.0
    for token in np.argsort(-weights):
        if total >= top_p:
            break
        kept[token], total = weights[token], total + weights[token]
    return kept / kept.sum()


def sequences(step, most):
    """The probability of every text of at most `most` tokens after the prompt (0, 1); END closes a
    text."""
    found = {}
    for text in product(range(SIZE), repeat=most):
        short = text[: text.index(END) + 1] if END in text else text
        if short in found:
            continue
        context, probability = [0, 1], 1.0
        for token in short:
            probability *= step(*context[-2:])[token]
            context.append(token)
        found[short] = probability
    return found


def chi_square(counts, expected, total):
    """p-value of the counts; texts expected fewer than 5 times are one class."""
    rare = {text for text, probability in expected.items() if probability * total < 5}
    observed = [counts.get(text, 0) for text in expected if text not in rare] + [
        sum(counts.get(text, 0) for text in rare)
    ]
    hoped = [probability * total for text, probability in expected.items() if text not in rare] + [
        sum(expected[t] * total for t in rare)
    ]
    pairs = [(o, h) for o, h in zip(observed, hoped, strict=True) if h > 0]
    # what cannot be is never drawn
    assert sum(o for o, h in zip(observed, hoped, strict=True) if h == 0) == 0
    observed, hoped = map(np.array, zip(*pairs, strict=True))
    return stats.chisquare(observed, hoped * observed.sum() / hoped.sum()).pvalue, len(pairs)


@pytest.fixture(scope="module")
def tables():
    """LLM, tuned and base: the base is the LLM with small changes, the tuned one is the base with
    large ones."""
    llm, tuned, base = Table(1), Table(2), Table(3)
    base.logits = llm.logits + 0.5 * base.logits
    tuned.logits = base.logits + tuned.logits
    return llm, tuned, base


CASES = {
    "plain": {},
    "short drafts": {"length": 1},
    "long drafts": {"length": 6},
    "alpha": {"alpha": 0.5},
    "cool": {"temperature": 0.6},
    "nucleus": {"top_p": 0.9, "temperature": 1.6},
    "top 3": {"k": 3, "rest": "none"},
    "top 3, the rest as the base": {"k": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_whole_sequences_have_the_law_of_direct_fused_sampling(tables, case):
    llm, tuned, base = tables
    options = {
        "alpha": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "k": SIZE,
        "length": 2,
        "rest": "base",
    } | CASES[case]
    draw = {name: options[name] for name in ("temperature", "top_p")}
    total, most = 6_000, 3
    asks = [Ask((0, 1), most, seed=number, **draw) for number in range(total)]
    score_drafts = looking(llm, options["k"])
    answers = decode_drafts(
        tuned,
        base,
        score_drafts,
        asks,
        {END},
        options["alpha"],
        options["length"],
        3000,
        rest=options["rest"],
    )
    counts = {}
    for drafted in answers:
        text = drafted.answer.tokens + ((END,) if drafted.answer.finish == "end" else ())
        counts[text] = counts.get(text, 0) + 1
    expected = sequences(
        lambda *last: distribution(
            llm, tuned, base, *last, options["alpha"], k=options["k"], rest=options["rest"], **draw
        ),
        most,
    )
    assert math.isclose(sum(expected.values()), 1)
    found, classes = chi_square(counts, expected, total)
    assert found > 1e-3 and classes >= 10, (found, classes)
    drafts = sequences(
        lambda *last: distribution(
            base, tuned, base, *last, options["alpha"], k=SIZE, rest="none", **draw
        ),
        most,
    )
    # what drafts that are never checked would give
    wrong = {text: probability * total for text, probability in drafts.items()}
    assert (
        chi_square(
            {t: round(c) for t, c in wrong.items() if expected[t] * total >= 5}, expected, total
        )[0]
        < 1e-6
    )


def test_fewer_looks_than_tokens_and_what_is_asked(tables):
    llm, tuned, base = tables
    seen = []
    asks = [Ask((0, 1), 12, seed=number) for number in range(64)]
    answers = decode_drafts(
        tuned, base, looking(llm, seen=seen), asks, NEVER, length=5, batch_size=64
    )
    tokens = sum(len(drafted.answer.tokens) for drafted in answers)
    looks = sum(drafted.looks for drafted in answers)
    assert tokens == 64 * 12 and looks == sum(map(len, seen)) < tokens / 1.8
    # never more than the answer may have
    assert all(len(row) <= 2 + 12 for rows in seen for row in rows)
    # every look adds one token behind those it keeps
    assert sum(drafted.kept for drafted in answers) == tokens - looks
    # the guess is the law: nothing is ever refused
    equal = decode_drafts(tuned, copy.copy(tuned), looking(tuned), asks, NEVER, length=5)
    assert all(drafted.kept == drafted.drafted == 10 and drafted.looks == 2 for drafted in equal)


def test_a_row_depends_on_its_own_seed_only(tables):
    llm, tuned, base = tables
    asks = [
        Ask((0, 1), 3 + number % 5, temperature=0.5 + number % 3, seed=number)
        for number in range(20)
    ]
    alone = [decode_drafts(tuned, base, looking(llm), [ask], {END})[0] for ask in asks]
    assert decode_drafts(tuned, base, looking(llm), asks, {END}, batch_size=7) == alone
    other = decode_drafts(
        tuned, base, looking(llm), [replace(ask, seed=ask.seed + 100) for ask in asks], {END}
    )
    assert [drafted.answer for drafted in other] != [drafted.answer for drafted in alone]


def test_rows_end_by_their_own_test_at_the_cap_and_at_once(tables):
    llm, tuned, base = tables
    stopped = Ask((0, 1), 9, seed=3, stopped=lambda new: len(new) == 4)
    answers = decode_drafts(
        tuned, base, looking(llm), [stopped, Ask((0, 1), 0), Ask((0, 1), 1, seed=5)], NEVER
    )
    assert [(len(drafted.answer.tokens), drafted.answer.finish) for drafted in answers] == [
        (4, "stopped"),
        (0, "length"),
        (1, "length"),
    ]
    assert answers[1].looks == 0 and answers[2].drafted == 0


# ---------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def models(llama):
    """A tiny LLM, a base that is close to it and a tuned model that is close to the base, so that
    drafts are kept now and then."""
    found = []
    for seed, scale in ((1, 0.0), (2, 0.02), (3, 0.04)):
        model, drawn = llama(), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=drawn) * scale)
        found.append(model)
    return found


def looking_at(model):
    def score_drafts(rows, heads):
        ids, mask = pad([list(row) for row in rows], 0)
        with torch.no_grad():
            logprobs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(dim=-1)
        found = [
            logprobs[i, head - 1 : len(row)].topk(logprobs.shape[2])
            for i, (row, head) in enumerate(zip(rows, heads, strict=True))
        ]
        return [Following(tokens, values) for values, tokens in found]

    return score_drafts


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_greedy_drafts_equal_greedy_fused_decoding(models, alpha):
    llm, tuned, base = models
    prompts = [(5, 6, 9), (7,), (10, 11, 12, 13, 14, 15), (16, 5), (5, 6, 9)]
    asks = [Ask(prompt, 20 - i, temperature=0.0) for i, prompt in enumerate(prompts)]
    ends = {1}
    pair = slm_pair(tuned, base)
    direct = decode(proxy_tuned(stepper(llm), pair, alpha), asks, ends)
    for length in (1, 4, 9):
        drafted = decode_drafts(pair.tuned, pair.base, looking_at(llm), asks, ends, alpha, length)
        assert [one.answer for one in drafted] == direct, length
    assert len({answer.tokens for answer in direct}) >= 4
    assert 0 < sum(one.kept for one in drafted) < sum(one.drafted for one in drafted)


# ---------------------------------------------------------------- what goes wrong


def test_not_numbers_fail_their_row_only(tables):
    llm, tuned, base = tables
    sound = looking(llm)

    def score_drafts(rows, heads):
        found = zip(rows, sound(rows, heads), strict=True)
        return [
            replace(one, logprobs=one.logprobs * math.nan) if row[0] == 3 else one
            for row, one in found
        ]

    asks = [Ask((0, 1), 6, seed=1), Ask((3, 1), 6, seed=1)]
    good, bad = decode_drafts(tuned, base, score_drafts, asks, NEVER)
    assert good.answer.finish == "length" and (bad.answer.finish, bad.answer.error) == (
        "error",
        NOT_NUMBERS,
    )


def test_a_list_filled_up_with_tokens_of_no_weight(tables):
    llm, tuned, base = tables
    sound = looking(llm, 3)

    def score_drafts(rows, heads):
        return [
            Following(
                torch.cat([one.tokens, one.tokens[:, :2]], 1),
                torch.cat([one.logprobs, torch.full((len(one.tokens), 2), -math.inf)], 1),
            )
            for one in sound(rows, heads)
        ]

    asks = [Ask((0, 1), 6, seed=seed) for seed in range(20)]
    assert decode_drafts(tuned, base, score_drafts, asks, {END}) == decode_drafts(
        tuned, base, sound, asks, {END}
    )


def test_what_was_done_before_the_llm_failed_is_told(tables):
    llm, tuned, base = tables
    sound, calls, finished = looking(llm), [], {}

    def score_drafts(rows, heads):
        calls.append(1)
        if len(calls) == 2:
            raise TimeoutError("no answer")
        return sound(rows, heads)

    with pytest.raises(TimeoutError):
        decode_drafts(
            tuned,
            base,
            score_drafts,
            [Ask((0, 1), 1), Ask((0, 1), 30)],
            NEVER,
            done=finished.__setitem__,
        )
    assert list(finished) == [0] and finished[0].answer.finish == "length"


def test_bad_input_is_named(tables):
    llm, tuned, base = tables
    score_drafts = looking(llm)
    for asks, more, words in (
        ([Ask((), 3)], {}, "row 0: found an empty prompt"),
        ([Ask((0, 1), 3, top_k=5)], {}, "found top_k 5"),
        ([Ask((0, 1), 3)], {"length": 0}, "drafts of 0 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            decode_drafts(tuned, base, score_drafts, asks, NEVER, **more)
    for lie, words in (
        (lambda rows, heads: [], "may follow 0 rows; 1 were asked"),
        (
            lambda rows, heads: [
                Following(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2))
            ],
            "places were asked",
        ),
        (
            lambda rows, heads: [Following(torch.full((3, 2), 99), torch.zeros(3, 2))],
            "token 99; the SLMs know 5 tokens",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            decode_drafts(tuned, base, lie, [Ask((0, 1), 9)], NEVER, length=2)
