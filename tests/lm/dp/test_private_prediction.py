"""Private prediction: the formula by hand, how far one context moves a token, and the batched loop
against one that reads everything anew for every token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fedduet.lm.decoding.draw import draw
from fedduet.lm.decoding.stepper import AnyStepper, LlamaStepper
from fedduet.lm.dp.contexts import deal_contexts
from fedduet.lm.dp.private_prediction import (
    Batch,
    ClippedDifferences,
    NoisyArgmax,
    cost,
    write_texts,
)
from fedduet.lm.randomness import SeededNoise

ALL = 10**6  # tokens of a top-k that leaves none out
ENDS = frozenset({1})


def rows(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def log_softmax(values) -> torch.Tensor:
    return torch.log_softmax(torch.as_tensor(values, dtype=torch.float32), dim=-1)


# --- The rules ------------------------------------------------------------------------------------


def test_clipped_differences_by_hand():
    """Differences (1.5, -0.2), (-3, 0.4) and a null one, clipped at 1 and divided by 4."""
    rule = ClippedDifferences(contexts=4, clip=1.0, top_k=ALL)
    public = rows([-1.0, -2.0])
    private = rows([[0.5, -2.2], [-4.0, -1.6], [9.0, 9.0]])
    present = torch.tensor([[True, True, False]])
    (phi,) = rule.scores(public, private, present)
    assert phi.tolist() == pytest.approx([-1 + (1 - 1) / 4, -2 + (-0.2 + 0.4) / 4])


def test_the_set_is_the_public_top_k_with_a_lower_threshold():
    rule = ClippedDifferences(contexts=2, clip=0.5, top_k=2)
    public = rows([-1.0, -2.0, -2.49, -2.51, -9.0])  # the second less 2 C / B = 0.5
    assert rule.candidates(public).tolist() == [[True, True, True, False, False]]
    private = rows([[-9.0, -9.0, -9.0, 0.0, 0.0]] * 2)
    (phi,) = rule.scores(public, private, torch.ones(1, 2, dtype=torch.bool))
    assert phi.isinf().tolist() == [False, False, False, True, True]


def test_rho_of_a_rule_and_the_rule_of_a_rho():
    assert ClippedDifferences(8, 2.8072, 1.0).rho * 24 == pytest.approx(1.4776, abs=1e-4)
    assert ClippedDifferences(8, 1.0, 2.0).rho == pytest.approx(1 / (2 * 64 * 4))
    rule = ClippedDifferences.of_rho(0.01, 12, 1.3, 50)
    assert rule.rho == pytest.approx(0.01) and rule.clip == pytest.approx(
        12 * 1.3 * math.sqrt(0.02)
    )
    assert NoisyArgmax.of_rho(0.02, 8, 100).sigma == pytest.approx(5.0)
    # the most tokens that a text may have, for every text of the batch
    assert cost(rule, tokens=24, texts=3) == pytest.approx(0.72)


@pytest.mark.parametrize("seed", range(6))
def test_one_context_moves_a_token_by_what_rho_says_and_hardly_less_in_the_worst_case(seed):
    """Renyi divergences of the token between neighbours, exactly, both ways; and for scores that are
    as bad as clipping lets them be."""
    contexts, clip, tau = 5, 0.6, 0.8
    rule = ClippedDifferences(contexts, clip, tau, ALL)
    draws = torch.Generator().manual_seed(seed)
    public = log_softmax(0.5 * torch.randn(1, 40, generator=draws))
    private = log_softmax(3 * torch.randn(1, contexts, 40, generator=draws))
    present = torch.ones(1, contexts, dtype=torch.bool)
    without = present.clone()
    without[0, 0] = False
    half = public[0].argsort(descending=True)
    worst, chosen = private.clone(), torch.zeros(40, dtype=torch.bool)
    chosen[half[public[0][half].exp().cumsum(0) < 0.5]] = True
    worst[0, 0] = public[0] + torch.where(chosen, 10.0, -10.0)
    eta = 2 * clip / (contexts * tau)
    largest = 0.0
    for scores in (private, worst):
        first, second = (
            torch.log_softmax(rule.scores(public, scores, mask)[0].double() / tau, dim=-1)
            for mask in (present, without)
        )
        ratio = first - second
        assert float(ratio.max() - ratio.min()) <= eta + 1e-5
        for one, other in ((first, second), (second, first)):
            for alpha in (1.01, 2.0, 8.0, 40.0):
                divergence = float(torch.logsumexp(alpha * one + (1 - alpha) * other, 0)) / (
                    alpha - 1
                )
                assert divergence <= rule.rho * alpha * 1.001
                largest = max(largest, divergence / (rule.rho * alpha))
    assert largest > 0.8


def test_noisy_argmax_by_hand_and_its_noise():
    rule = NoisyArgmax(contexts=2, sigma=0.7, top_k=2)
    public = rows([-1.0, -5.0, -2.0]).repeat(20_000, 1)
    private = torch.tensor([[[0.25, 0.5, 0.25], [0.9, 0.0, 0.1]]]).clamp_min(1e-30).log()
    present = torch.tensor([[True, True]])
    means, tokens = rule.means(public[:1], private, present)
    assert tokens.tolist() == [[0, 2]] and means.tolist()[0] == pytest.approx([0.7, 0.3])
    halved, _ = rule.means(public[:1], private, torch.tensor([[True, False]]))
    assert halved.tolist()[0] == pytest.approx([0.25, 0.25])
    many = private.expand(20_000, -1, -1), present.expand(20_000, -1)
    drawn = rule.draw(public, *many, SeededNoise(0))
    # 0.7 + N(0, (0.7 / 2)^2) above 0.3 + N(0, (0.7 / 2)^2)
    expected = 0.5 * (1 + math.erf(0.4 / (0.35 * math.sqrt(2)) / math.sqrt(2)))
    assert float((drawn == 0).float().mean()) == pytest.approx(expected, abs=0.012)
    assert {*drawn.tolist()} == {0, 2}


def test_tokens_are_drawn_by_the_softmax_of_phi_over_tau():
    rule = ClippedDifferences(1, 1.0, 2.0, ALL)
    public, private = log_softmax([[0.5, 0.3, 0.2]]), log_softmax([[[0.1, 0.1, 0.8]]])
    present = torch.ones(1, 1, dtype=torch.bool)
    wanted = torch.softmax(rule.scores(public, private, present)[0] / 2.0, dim=-1)
    drawn = rule.draw(
        public.repeat(20_000, 1), private.repeat(20_000, 1, 1), present.repeat(20_000, 1),
        SeededNoise(1),
    )  # fmt: skip
    shares = torch.bincount(drawn, minlength=3) / 20_000
    assert shares.tolist() == pytest.approx(wanted.tolist(), abs=0.012)


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        (lambda: ClippedDifferences(0, 1.0), "contexts"),
        (lambda: ClippedDifferences(2, 0.0), "clip"),
        (lambda: ClippedDifferences(2, math.inf), "clip"),
        (lambda: ClippedDifferences(2, 1.0, -1.0), "temperature"),
        (lambda: ClippedDifferences(2, 1.0, 1.0, 0), "top_k"),
        (lambda: NoisyArgmax(2, 0.0), "sigma"),
    ],
)
def test_values_out_of_range_are_named(rule, key):
    with pytest.raises(ValueError, match=f"{key}: found"):
        rule()


# --- Whole texts ----------------------------------------------------------------------------------

BATCHES = [
    Batch((5, 8, 9), ((5, 6, 8, 9), (7, 8), None, (6,)), texts=3),
    Batch((11, 12), ((11, 13, 14, 20, 21),), texts=2),
    Batch((9, 10), (), texts=1),
]


def by_whole_passes(model, rule, batches, tokens, randomness):
    """Every text on its own, everything read anew for each token, without a cache or padding."""
    written = []
    for batch in batches:
        for _ in range(batch.texts):
            text: list[int] = []
            while len(text) < tokens:
                prompts = [batch.public, *(p for p in batch.contexts if p)]
                with torch.no_grad():
                    scores = [
                        log_softmax(model(torch.tensor([[*prompt, *text]])).logits[0, -1])
                        for prompt in prompts
                    ]
                public = scores[0]
                total = sum(
                    ((one - public).clamp(-rule.clip, rule.clip) for one in scores[1:]),
                    torch.zeros_like(public),
                )
                phi = (public + total / rule.contexts)[None].double()
                uniform = torch.from_numpy(randomness.uniform(1))
                ones = torch.ones(1, dtype=torch.float64)
                token = int(draw(phi, uniform, rule.temperature * ones, 0, ones))
                if token in ENDS:
                    break
                text.append(token)
            written.append(tuple(text))
    return written


@pytest.mark.parametrize("stepper", [LlamaStepper, AnyStepper])
def test_a_batch_of_texts_is_what_whole_passes_write(llama, stepper):
    model, rule = llama(), ClippedDifferences(3, 1.5, 1.2, ALL)
    run = stepper(model)
    alone = write_texts(run, BATCHES, rule, 6, 8, ENDS, SeededNoise(3), rows=1)
    reference = by_whole_passes(model, rule, BATCHES, 6, SeededNoise(3))
    assert [one.tokens for one in alone] == reference
    assert [one.batch for one in alone] == [0, 0, 0, 1, 1, 2]
    assert {one.finished for one in alone} == {len(text) < 6 for text in reference}


class Fixed:
    """Uniform numbers that depend on nothing, so that texts do not depend on what runs beside."""

    def uniform(self, count):
        return np.full(count, 0.37)


@pytest.mark.parametrize("size", [6, 11, 100])
def test_texts_do_not_depend_on_what_is_read_beside_them(llama, size):
    rule = ClippedDifferences(3, 1.5, 1.2, ALL)
    run = LlamaStepper(llama())
    alone = write_texts(run, BATCHES, rule, 9, 8, ENDS, Fixed(), rows=1)
    seen: list[int] = []
    beside = write_texts(run, BATCHES, rule, 9, 8, ENDS, Fixed(), rows=size, done=seen.append)
    assert beside == alone and seen[-1] == 6
    assert len({one.tokens for one in alone}) == 3  # one for each batch


def test_without_private_contexts_the_public_prompt_writes(llama):
    """Null contexts change nothing, whatever B and C are."""
    run = LlamaStepper(llama())
    nulls = [Batch((5, 8, 9), (None,) * 4, texts=2)]
    wild, tame = ClippedDifferences(4, 50.0, 1.0, ALL), ClippedDifferences(1, 1e-6, 1.0, ALL)
    first = write_texts(run, nulls, wild, 8, 6, ENDS, SeededNoise(2))
    assert first == write_texts(run, nulls, tame, 8, 6, ENDS, SeededNoise(2))


def test_prompts_that_do_not_fit_the_public_width_are_refused(llama):
    run, rule = LlamaStepper(llama()), ClippedDifferences(2, 1.0)
    for batch in (Batch((5, 6, 7), ()), Batch((5,), ((5, 6, 7),)), Batch((5,), ((),))):
        with pytest.raises(ValueError, match="allowed: 1 to 2"):
            write_texts(run, [batch], rule, 2, 2, ENDS, SeededNoise(0))


def test_logits_that_are_no_numbers_end_the_writing(llama):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(RuntimeError, match="not numbers"):
        write_texts(
            AnyStepper(model), [Batch((5,), ((6,),))], ClippedDifferences(2, 1.0), 2, 2, ENDS,
            SeededNoise(0),
        )  # fmt: skip


# --- Who is in which batch ------------------------------------------------------------------------

TEXTS = [f"text {number}" for number in range(60)]
LABELS = [number % 3 for number in range(60)]


def test_every_record_is_alone_in_one_context_of_one_batch_of_its_label():
    dealt = deal_contexts(TEXTS, LABELS, None, b"secret", 4)
    held = [(place, own) for place, contexts in dealt.items() for own in contexts]
    assert sorted(text for _, (text,) in held) == sorted(TEXTS)
    assert all(LABELS[TEXTS.index(text)] == label for (label, _), (text,) in held)
    sizes = [sum(len(c) for (_, batch), c in dealt.items() if batch == b) for b in range(4)]
    assert min(sizes) > 5  # 60 in 4 batches
    other = deal_contexts(TEXTS, LABELS, None, b"another", 4)
    assert other != dealt


@pytest.mark.parametrize("users", [None, [f"user {number // 4}" for number in range(60)]])
def test_a_unit_that_vanishes_changes_its_own_context_only(users):
    whole = deal_contexts(TEXTS, LABELS, users, b"secret", 3, most=2)
    for gone in range(0, 60, 7):
        left = [
            number
            for number in range(60)
            if (users[number] != users[gone] if users else number != gone)
        ]
        part = deal_contexts(
            [TEXTS[i] for i in left], [LABELS[i] for i in left],
            [users[i] for i in left] if users else None, b"secret", 3, most=2,
        )  # fmt: skip
        missing = [
            own for place, held in whole.items() for own in held if own not in part.get(place, [])
        ]
        assert (
            len(missing) == 1 and sum(map(len, part.values())) == sum(map(len, whole.values())) - 1
        )


def test_equal_records_have_a_context_each_and_users_one():
    same = deal_contexts(["a b c"] * 3, [0] * 3, None, b"secret", 5)
    assert list(same.values()) == [[["a b c"]] * 3]
    users = deal_contexts(TEXTS, LABELS, ["one"] * 60, b"secret", 5, most=2)
    ((place, ((first, second),)),) = users.items()
    assert {LABELS[TEXTS.index(first)], LABELS[TEXTS.index(second)]} == {place[0]}
    with pytest.raises(ValueError, match="found 0 batches"):
        deal_contexts(TEXTS, LABELS, None, b"secret", 0)
