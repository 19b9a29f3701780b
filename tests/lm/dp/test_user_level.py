"""Users as the unit of privacy: what is clipped is a user's mean gradient, by every engine, and a
user is what is drawn and audited."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from fedduet.lm.attacks.one_run_audit import DiracCanaries, audit_apart
from fedduet.lm.dp.accounting import Event, noise_multiplier_for
from fedduet.lm.dp.bookkeeping import book_keeping_engine
from fedduet.lm.dp.clipped_sums import ClippedSum, LossBatch, hooks_engine, unit_batch, vmap_engine
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.dp.dpsgd import planned_steps, prepare_generator, rows_of_units, train_generator
from fedduet.lm.models.batch import Encoded, encode_document
from fedduet.lm.models.load import load_causal_lm, load_tokenizer, trainable
from fedduet.lm.randomness import SeededNoise

from tests.lm.dp.test_bookkeeping import distance, made
from tests.lm.dp.test_dpsgd import FAST, Coins, gradients_of_one_step

ENGINES = {"vmap": vmap_engine, "hooks": hooks_engine, "book_keeping": book_keeping_engine}
SIZES = (1, 3, 2, 1, 2)  # rows of each user


def users(seed=3):
    draw = torch.Generator().manual_seed(seed)
    lengths = iter((5, 9, 14, 3, 8, 11, 6, 4, 12))
    return [
        [
            Encoded(tuple(torch.randint(2, 16, (next(lengths),), generator=draw).tolist()))
            for _ in range(size)
        ]
        for size in SIZES
    ]


def reference(model, units):
    """(clipped sums, clip): every row alone; the mean over a user's rows is clipped; some users
    are, some are not."""
    parameters, means = trainable(model), []
    for unit in units:
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters.values()]
        for row in unit:
            ids = torch.tensor([row.ids])
            loss = torch.nn.functional.cross_entropy(
                model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:]
            )
            for place, part in enumerate(
                torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            ):
                total[place] += part.double() / len(unit)
        means.append(total)
    norms = [float(torch.cat([part.flatten() for part in mean]).norm()) for mean in means]
    clip = sorted(norms)[2]
    sums = [
        sum(mean[i] * min(1.0, clip / norm) for mean, norm in zip(means, norms, strict=True))
        for i in range(len(parameters))
    ]
    return dict(zip(parameters, sums, strict=True)), clip


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("shape", "engine"),
    [
        ("llama", "book_keeping"),
        ("gpt2", "book_keeping"),
        ("bert", "book_keeping"),
        ("llama", "vmap"),
        ("gpt2", "hooks"),
    ],
)
def test_the_sum_is_that_of_clipped_means_over_users(shape, engine, method):
    model = made(shape, method)
    expected, clip = reference(model, users())
    total = ClippedSum(trainable(model), clip)
    with ENGINES[engine](model, False) as add:
        for part in (users()[:2], users()[2:]):
            add(unit_batch(part, 0, True), total)
    assert distance(total.sums, expected, clip) < 1e-5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_in_bf16_a_user_of_several_rows_still_adds_the_clip_at_most(method):
    model = made("llama", method)
    for unit in users():
        total = ClippedSum(trainable(model), 0.01)
        with book_keeping_engine(model, True) as add:
            add(unit_batch([unit], 0, True), total)
        assert (
            0.009
            < float(torch.cat([value.flatten() for value in total.sums.values()]).norm())
            <= 0.01 * (1 + 1e-6)
        )


def test_a_user_with_a_row_that_is_not_finite_adds_nothing():
    model = made("llama", tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = float("inf")
    total, alone = ClippedSum(trainable(model), 1.0), ClippedSum(trainable(model), 1.0)
    whole = [Encoded((5, 6, 7, 8)), Encoded((9, 4))]
    with book_keeping_engine(model, False) as add:
        add(unit_batch([[Encoded((5, 6, 63, 7)), Encoded((2, 3))], whole], 0, True), total)
        add(unit_batch([whole], 0, True), alone)
    assert (
        distance(total.sums, alone.sums, 1.0)
        < 1e-6
        < distance(total.sums, {n: 0 * v for n, v in total.sums.items()}, 1.0)
    )


# -- The training ----------------------------------------------------------------------------------

OWNERS = [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7]  # of the 16 texts of test_dpsgd


def test_users_are_drawn_and_one_moves_the_mean_by_the_clip_over_the_expected_number(
    tokenizer, llama, monkeypatch
):
    """All eight users are drawn, then all but one: the mean that the optimizer sees moves by at
    most C / (q n), n users."""
    config = DPConfig(steps=1, tuning="full", clip=0.05, **(FAST | {"logical_batch": 4}))

    def step(drawn):
        coins = Coins(0, [drawn])
        monkeypatch.setattr(
            "fedduet.lm.dp.dpsgd.some_rows", lambda rows, most, randomness: rows[:most]
        )
        return gradients_of_one_step(
            llama().requires_grad_(True), tokenizer, config, 0.0, coins, monkeypatch, OWNERS
        )[0]

    everybody = step(range(8))
    for gone in range(8):
        moved = float((everybody - step([user for user in range(8) if user != gone])).norm())
        # each is clipped, so each moves it by just that
        assert moved == pytest.approx(0.05 / 4, rel=1e-2)
    # user 0 has six texts, and counts once
    assert float(step([0]).norm()) == pytest.approx(0.05 / 4, rel=1e-2)


def test_the_plan_counts_users_and_so_does_the_run(tokenizer, llama):
    config = DPConfig(epochs=6, **(FAST | {"logical_batch": 4}))
    report = train_generator(
        prepare_generator(llama(), config),
        tokenizer,
        [""] * 16,
        ["the film was nice"] * 16,
        config,
        0.0,
        SeededNoise(1),
        OWNERS,
    )
    assert (report.steps, report.sample_rate) == planned_steps(config, 8) == (12, 0.5)
    assert max(report.batch_sizes) <= 8 and abs(np.mean(report.batch_sizes) - 4) < 6 * np.sqrt(
        2 / 12
    )


def test_of_a_users_texts_at_most_so_many_are_in_a_step_and_in_time_all(tokenizer, llama):
    config = DPConfig(steps=12, records_per_user=2, **(FAST | {"logical_batch": 8}))
    seen = []

    class Spy:
        def engine(self, model, autocast):
            @contextmanager
            def opened():
                yield lambda batch, total: seen.append(batch)

            return opened()

    texts = [" ".join(["nice"] * (1 + row)) for row in range(16)]
    given = (
        prepare_generator(llama(), config),
        tokenizer,
        [""] * 16,
        texts,
        config,
        0.0,
        SeededNoise(1),
        OWNERS,
    )
    train_generator(*given, engine=Spy().engine)
    lengths = [(batch.weights > 0).sum(dim=1).tolist() for batch in seen]
    assert all(batch.group <= 2 for batch in seen)
    of_the_first = [
        len(encode_document(tokenizer, "", text, FAST["max_tokens"]).ids) - 1 for text in texts[:6]
    ]
    assert len(set(of_the_first)) == 6 and set(of_the_first) <= {
        length for step in lengths for length in step
    }
    for batch in seen:
        mine = batch.weights.sum(dim=1).view(batch.units, batch.group).sum(dim=1)
        # a user's loss is the mean over the rows that are there
        assert torch.allclose(mine, torch.ones(batch.units))


def test_rows_keep_to_their_owner():
    assert rows_of_units([5, 3, 5, 5, 9]) == [[0, 2, 3], [1], [4]]


def test_owners_and_texts_go_together(tokenizer, llama):
    config = DPConfig(steps=1, **FAST)
    with pytest.raises(ValueError, match="found 3 owners for 2 texts"):
        train_generator(
            prepare_generator(llama(), config),
            tokenizer,
            [""] * 2,
            ["a", "b"],
            config,
            0.0,
            SeededNoise(1),
            [0, 1, 1],
        )


# -- The audit -------------------------------------------------------------------------------------

USERS, EACH, CLAIM = 2000, 3, 4.0


def audited(folder, engine=lambda watch: watch.engine):
    """The larger bound for canary users of three rows each, in or out by a coin, against noise
    planned for CLAIM."""
    draws = np.random.default_rng(3)
    config = DPConfig(
        rank=8, logical_batch=120, steps=24, micro_batch=96, max_tokens=24, precision="fp32"
    )
    tokenizer = load_tokenizer(folder, generates=True)
    model = prepare_generator(load_causal_lm(folder, tokenizer=tokenizer), config, 0)
    texts = [
        "".join(draws.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(USERS * EACH)
    ]
    owners, included = np.repeat(np.arange(USERS), EACH).tolist(), draws.random(USERS) < 0.5
    inside = [place for place, owner in enumerate(owners) if included[owner]]
    count = int(included.sum())
    steps, rate = planned_steps(config, count)
    sigma = noise_multiplier_for(CLAIM, 1e-5, rate, steps)
    rows = [encode_document(tokenizer, "", text, 24) for text in texts]
    watch = DiracCanaries(model, rows, config.clip, sigma, rate, rate * count, owners)
    given = (
        model,
        tokenizer,
        [""] * len(inside),
        [texts[i] for i in inside],
        config,
        sigma,
        SeededNoise(5),
        [owners[i] for i in inside],
    )
    train_generator(*given, watch=watch, engine=engine(watch))
    found = audit_apart(
        watch.scores, included, 1e-5, lambda noise: Event.poisson_gaussian(noise, rate, steps)
    )
    return max(found.epsilon, found.by_curve)


def clipping_rows(watch):
    """The broken form: every row of a user is clipped by itself, so that a user moves the sum by as
    many clips as they have rows."""

    @contextmanager
    def opened(model, autocast):
        with watch.engine(model, autocast) as add:
            yield lambda batch, total: add(
                dataclasses.replace(LossBatch(batch.ids, batch.weights), group=1), total
            )

    return opened


def test_users_stay_below_their_claim_and_clipping_rows_instead_of_users_is_seen(tiny_model):
    assert CLAIM / 4 < audited(tiny_model) <= CLAIM
    bound = audited(tiny_model, clipping_rows)
    print(
        f"| DP-SGD for users | a user's records are clipped one by one | {CLAIM:g} | {bound:.2f} |"
    )
    assert bound > CLAIM
