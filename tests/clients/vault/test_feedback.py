"""Scores under differential privacy: a record's vote is bounded, the noise is what was charged, the
scorer pays once, all is composed."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from fedduet.clients.vault import feedback
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.feedback import (
    VOTE,
    View,
    agreement,
    clipped_gradients,
    embed,
    noisy,
    noisy_votes,
    opinions,
    train_scorer,
    vote_sum,
    votes,
)
from fedduet.lm.dp.accounting import Event, compose, noise_multiplier_for
from fedduet.lm.dp.adaptive import compose_adaptively
from fedduet.lm.randomness import SecureNoise, SeededNoise
from fedduet.tasks.builtin.world import PUBLIC_DOMAINS, world_records
from fedduet.tasks.data.load import load_client
from fedduet.wire.messages import (
    LabelledTexts,
    Learn,
    Refused,
    Score,
    Scored,
    Synthesize,
    Synthesized,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

DELTA = 1e-5
TEXTS = [record.text for record in world_records(PUBLIC_DOMAINS[0], 12, 5)]
DATA = LabelledTexts(TEXTS, [i % 2 for i in range(12)])


def ask(message_id="s", feedback="votes", **changes) -> Score:
    return Score(
        **{
            "message_id": message_id,
            "run": "r",
            "model": "local",
            "data": DATA,
            "epsilon": 8.0,
            "feedback": feedback,
            **changes,
        }
    )


def ledger_of(vault, name="ledger.jsonl") -> Ledger:
    return Ledger(vault.config.folder / name, math.inf, DELTA, allow_unprotected=True)


def charged(vault, name="ledger.jsonl") -> list[Event]:
    return ledger_of(vault, name).events()


def taught(vault, model="local"):
    answer, _ = vault.learn(Learn("l", "r", model))
    assert not isinstance(answer, Refused), answer
    return vault


class Silent:
    """A noise source that is silent and counts what was asked of it."""

    def __init__(self):
        self.asked = []

    def normal(self, count):
        self.asked.append(count)
        return torch.zeros(count)


# --- Votes: arithmetic ----------------------------------------------------------------------------

vectors = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-1e3, 1e3)
)


@settings(max_examples=100, deadline=None)
@given(vectors, vectors, st.integers(2, 5), st.randoms(use_true_random=False))
def test_no_record_has_more_than_one_vote(records, texts, classes, random):
    """Whatever the vectors are, also of no length or of any: the scaling is what bounds them."""
    labels = [
        np.array([random.randrange(classes) for _ in rows], dtype=int) for rows in (records, texts)
    ]
    rows = votes(records, labels[0], texts, labels[1], classes)
    assert rows.shape == (len(records), len(texts)) and np.isfinite(rows).all()
    assert (np.linalg.norm(rows, axis=1) <= 1 + 1e-9).all()


def world(count, seed, domain=0):
    records = world_records(PUBLIC_DOMAINS[domain], count, seed)
    return [record.text for record in records], np.array([record.label for record in records])


@pytest.fixture(scope="module")
def seen():
    """Directions and labels of 30 records and of 40 texts of one public domain."""
    (own, own_labels), (texts, labels) = world(30, 1), world(40, 2)
    public = feedback.hashed_embeddings(texts).astype(float)
    view = View.of(public)
    return (
        view.directions(feedback.hashed_embeddings(own).astype(float)),
        own_labels,
        view.directions(public),
        labels,
    )


def test_every_neighbouring_data_set_is_one_away(seen, monkeypatch):
    own, own_labels, texts, labels = seen
    monkeypatch.setattr(feedback, "_BLOCK", 7)  # sums run over several blocks
    whole = vote_sum(own, own_labels, texts, labels, 2, range(30))
    distances = []
    for gone in range(len(own)):
        rest = np.delete(np.arange(len(own)), gone)
        distances.append(
            np.linalg.norm(whole - vote_sum(own[rest], own_labels[rest], texts, labels, 2, rest))
        )
    twice = vote_sum(
        np.repeat(own, 2, axis=0), np.repeat(own_labels, 2), texts, labels, 2, range(60)
    )
    assert twice.tolist() == (2 * whole).tolist() and whole.dtype == np.int64
    assert VOTE * 0.999 < min(distances) <= max(distances) <= VOTE  # in whole numbers, so exactly
    assert np.linalg.norm(whole) > 2 * VOTE  # the sum itself is not bounded


def test_a_vote_is_for_like_texts_of_the_same_label():
    texts = np.eye(2)[[0, 0, 1]]
    labels = np.array([0, 1, 0])
    (row,) = votes(np.array([[0.3, 0.0]]), np.array([0]), texts, labels, 3)
    # 1 and -1 / (K - 1), scaled
    np.testing.assert_allclose(row, np.array([1.0, -0.5, 0.0]) / math.sqrt(1.25))
    (row,) = votes(np.array([[3.0, 4.0]]), np.array([0]), texts, labels, 2)
    np.testing.assert_allclose(row, np.array([3.0, -3.0, 4.0]) / math.sqrt(34))
    assert votes(np.zeros((1, 2)), np.array([0]), texts, labels, 2).tolist() == [[0.0, 0.0, 0.0]]


def test_the_noise_has_the_charged_deviation():
    drawn = (
        np.stack([noisy(np.full(50, 3.0), 1.7, SeededNoise(0, "n", i)) for i in range(400)]) - 3.0
    )
    assert abs(drawn.std() - 1.7) < 5 * 1.7 / math.sqrt(2 * drawn.size)
    assert abs(drawn.mean()) < 5 * 1.7 / math.sqrt(drawn.size)
    correlation = np.corrcoef(drawn.T)
    assert np.abs(correlation - np.eye(50)).max() < 0.3  # each number has its own
    secure = noisy(np.zeros(20_000), 1.7, SecureNoise())
    assert abs(secure.std() - 1.7) < 5 * 1.7 / math.sqrt(40_000)


def test_noise_of_votes_is_discrete_and_has_the_charged_deviation():
    total = np.arange(-400, 400) * VOTE
    drawn = noisy_votes(total, 1.7, SecureNoise()) * VOTE - total
    assert (drawn == np.round(drawn)).all() and len(set(drawn % 16)) == 16
    assert abs(drawn.std() / VOTE - 1.7) < 5 * 1.7 / math.sqrt(1600)
    assert abs(drawn.mean() / VOTE) < 5 * 1.7 / math.sqrt(800)


def test_noise_alone_is_no_opinion_whatever_the_texts(seen):
    """Under noise alone a score is uniform in [0, 1]: the scale is the smoothed noise's own."""
    _, _, texts, labels = seen
    scores = np.stack(
        [
            opinions(noisy(np.zeros(40), 2.5, SeededNoise(1, i)), texts, labels, 2, 2.5, 30)
            for i in range(500)
        ]
    )
    assert abs(scores.mean() - 0.5) < 0.02 and abs(scores.std() - 1 / math.sqrt(12)) < 0.02
    spread = scores.std(axis=0)
    assert spread.min() > 0.25 and spread.max() < 0.33
    assert opinions(np.zeros(40), texts, labels, 2, 2.5, 30).tolist() == [0.5] * 40
    # a text that says nothing
    assert opinions(np.array([9.0]), np.zeros((1, 3)), np.array([1]), 2, 1.0, 30).tolist() == [0.5]


def test_smoothing_is_the_formula():
    texts, labels, noise = (
        np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]),
        np.array([0, 1, 1]),
        np.array([1.0, -2.0, 0.5]),
    )
    gram = (texts @ texts.T) * np.array([[1, -1, -1], [-1, 1, 1], [-1, 1, 1]]) / 3
    values, basis = np.linalg.eigh(gram)
    smooth = basis @ np.diag(values / (values + 1.5**2 / 10)) @ basis.T
    z = smooth @ noise / (1.5 * np.sqrt((smooth**2).sum(axis=1)))
    expected = [0.5 * (1 + math.erf(value / math.sqrt(2))) for value in z]
    np.testing.assert_allclose(opinions(noise, texts, labels, 2, 1.5, 10), expected, atol=1e-9)
    assert agreement(np.array([0, 1]), np.array([1]), 2).tolist() == [[-1], [1]]


def test_the_view_weighs_rare_words_and_leaves_hidden_states_alone():
    view = View.of(np.array([[0.6, 0.8, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(view.weights, [1.0, 1 + math.log(4 / 2), 1 + math.log(4)])
    np.testing.assert_allclose(View.of(np.full((5, 3), 0.1)).weights, 1.0)
    rows = view.directions(np.array([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)


# --- The scorer: arithmetic -----------------------------------------------------------------------


def test_each_records_gradient_is_clipped_and_is_the_losss():
    rng = np.random.default_rng(0)
    features, labels, head = (
        3 * rng.standard_normal((20, 5)),
        rng.integers(0, 3, 20),
        rng.standard_normal((3, 5)),
    )
    weights = torch.tensor(head, requires_grad=True)
    clipped = 0
    for row in range(20):
        weights.grad = None
        loss = torch.nn.functional.cross_entropy(
            torch.tensor(features[row : row + 1]) @ weights.T, torch.tensor(labels[row : row + 1])
        )
        loss.backward()
        true = weights.grad.numpy()
        factor = min(1.0, 0.5 / np.linalg.norm(true))
        clipped += factor < 1
        ours = np.outer(
            clipped_gradients(head, features[row : row + 1], labels[row : row + 1], 0.5, [0])[0],
            features[row],
        )
        np.testing.assert_allclose(ours, factor * true, atol=1e-12)
        assert np.linalg.norm(ours) <= 0.5 + 1e-9
    assert 5 < clipped < 20


def test_a_steps_sum_moves_by_at_most_the_clip(monkeypatch):
    """Brute force: in every step, each record taken out of the sum that gets the noise moves it by
    C at most, and some by just that."""
    texts, labels = world(24, 3)
    vectors = feedback.hashed_embeddings(texts).astype(float)
    sums, heads, clipped = [], [], feedback.clipped_gradients

    def summed(total, deviation, randomness):
        sums.append((total, deviation))
        return noisy(total, deviation, SeededNoise(0, len(sums)))

    monkeypatch.setattr(feedback, "noisy", summed)
    monkeypatch.setattr(
        feedback,
        "clipped_gradients",
        lambda head, *rest: heads.append((head.copy(), *rest)) or clipped(head, *rest),
    )
    train_scorer(vectors, labels, range(24), View.of(vectors), 2, 1.3, 4, Silent())
    assert len(sums) == 4 and {deviation for _, deviation in sums} == {1.3 * feedback.CLIP}
    moved = []
    for (whole, _), (head, features, _, clip, _) in zip(sums, heads, strict=True):
        for gone in range(24):
            rest = np.delete(np.arange(24), gone)
            moved.append(
                np.linalg.norm(
                    whole
                    - clipped(head, features[rest], labels[rest], clip, rest).T @ features[rest]
                )
            )
    assert (
        len(moved) == 96 and max(moved) == pytest.approx(feedback.CLIP, abs=1e-9) and min(moved) > 0
    )


def test_a_private_scorer_and_votes_tell_right_labels_from_wrong_ones():
    """45 records, epsilon 8 (votes: over 3 rounds): far from chance, and below what no noise
    reaches."""
    from sklearn.metrics import roc_auc_score

    sigma_votes, sigma = (noise_multiplier_for(8.0, DELTA, 1.0, 1, rounds) for rounds in (3, 1))
    found: dict[str, list[float]] = {"votes": [], "gaussian": [], "no noise": []}
    for seed in range(12):
        (own, own_labels), (texts, truth) = (
            world(45, 10 + seed, seed % 3),
            world(240, 100 + seed, seed % 3),
        )
        right = np.random.default_rng(seed).random(240) < 0.65
        labels = np.where(right, truth, 1 - truth)
        public, private = (feedback.hashed_embeddings(rows).astype(float) for rows in (texts, own))
        view = View.of(public)
        seen, mine = view.directions(public), view.directions(private)
        total = vote_sum(mine, own_labels, seen, labels, 2, range(45))
        scores = opinions(
            noisy(total, sigma_votes, SeededNoise(seed)), seen, labels, 2, sigma_votes, 45
        )
        found["votes"].append(roc_auc_score(right, scores))
        for name, noise in (("gaussian", sigma * math.sqrt(feedback.STEPS)), ("no noise", 0.0)):
            scorer = train_scorer(
                private, own_labels, range(45), view, 2, noise, feedback.STEPS, SeededNoise(seed)
            )
            found[name].append(
                roc_auc_score(right, feedback.of_labels(scorer.probabilities(public), labels))
            )
    means = {name: np.mean(values) for name, values in found.items()}
    assert means["votes"] > 0.62 and means["gaussian"] > 0.62, means
    assert means["no noise"] > means["gaussian"] + 0.03, means


# --- The vault: charged, composed, once -----------------------------------------------------------


def test_votes_are_charged_before_the_noise_is_drawn(site, monkeypatch):
    vault, at_noise, draw = site(), [], feedback.noisy_votes

    def spied(total, sigma, randomness):
        at_noise.append(
            (
                sigma,
                isinstance(randomness, SecureNoise),
                (vault.config.folder / "ledger.jsonl").read_text().splitlines(),
            )
        )
        return draw(total, sigma, randomness)

    monkeypatch.setattr(feedback, "noisy_votes", spied)
    answer = vault.score(ask(rounds=3))
    ((sigma, secure, (line,)),) = at_noise
    assert (
        secure
        and json.loads(line)["what"] == "gaussian-votes"
        and json.loads(line)["released"] == 12
    )
    assert charged(vault) == [Event.gaussian(sigma)]
    assert sigma == noise_multiplier_for(8.0, DELTA, 1.0, 1, rounds=3)
    receipt = answer.receipt
    assert (receipt.mechanism, receipt.noise_multiplier, receipt.steps, receipt.records) == (
        "gaussian-votes",
        sigma,
        1,
        32,
    )
    assert (
        receipt.epsilon == compose([Event.gaussian(sigma)], DELTA)
        and receipt.epsilon_total == compose([Event.gaussian(sigma, 3)], DELTA)
        and receipt.delta == DELTA
    )
    assert len(answer.scores) == receipt.released == 12 and all(
        0 <= score <= 1 for score in answer.scores
    )


def test_scores_come_in_the_order_of_the_texts(site):
    """The noise goes by place, so a silent site shows it: turned around, the scores turn around."""
    reversed_data = LabelledTexts(DATA.texts[::-1], DATA.labels[::-1])
    for kind in ("none", "gaussian"):
        vault = taught(site(f"order-{kind}"))
        one, other = vault.score(ask("a", kind)), vault.score(ask("b", kind, data=reversed_data))
        np.testing.assert_allclose(one.scores, other.scores[::-1], atol=2e-6)
        assert len(set(one.scores)) > 6
    flipped = vault.score(
        ask("c", "gaussian", data=LabelledTexts(TEXTS, [1 - label for label in DATA.labels]))
    )
    # p of the label that was asked
    np.testing.assert_allclose(flipped.scores, [1 - score for score in one.scores], atol=2e-6)


def test_three_rounds_of_votes_end_just_below_the_runs_epsilon(site):
    vault = site()
    answers = [vault.score(ask(f"s{round}", round=round, rounds=3)) for round in range(3)]
    totals = [answer.receipt.epsilon_total for answer in answers]
    assert totals == sorted(totals) and 7.9 < totals[-1] <= 8
    assert (
        totals[-1]
        == compose(charged(vault), DELTA)
        < sum(answer.receipt.epsilon for answer in answers)
    )
    over = vault.score(ask("more"))
    assert isinstance(over, Refused) and over.kind == "budget" and "is spent already" in over.reason
    assert len(charged(vault)) == 3


def test_the_same_id_gets_the_same_scores_for_one_charge(site):
    for kind in ("none", "votes", "gaussian"):
        vault = taught(site(kind))
        first = vault.score(ask("same", kind))
        assert isinstance(first, Scored) and vault.score(ask("same", kind)) == first
        # a new process, whatever is asked
        assert site(kind).score(ask("same", kind, data=LabelledTexts(["another"], [0]))) == first
        assert len(charged(vault)) == 1


def test_texts_and_votes_of_one_run_are_composed(site):
    """FDKT within a part of epsilon, then votes with what is left of the whole."""
    vault = site()
    texts = vault.synthesize(Synthesize("t", "r", 0, 1, 2, 5.0))
    assert isinstance(texts, Synthesized) and 4.9 < texts.receipt.epsilon <= 5
    scored = [vault.score(ask(f"s{round}", round=round, rounds=2)) for round in range(2)]
    events = charged(vault)
    assert [event.kind for event in events] == ["poisson_gaussian", "gaussian", "gaussian"]
    assert scored[-1].receipt.epsilon_fixed == pytest.approx(compose(events, DELTA), rel=1e-6)
    plans = [events[0], events[1].times(2)]
    assert scored[-1].receipt.epsilon_total == compose_adaptively(plans, DELTA)
    assert 7.9 < scored[-1].receipt.epsilon_total <= 8
    # the texts took their part
    assert events[1].noise_multiplier > noise_multiplier_for(8.0, DELTA, 1.0, 1, rounds=2)


def test_votes_that_do_not_fit_beside_the_texts_are_refused(site):
    vault = site()
    vault.synthesize(Synthesize("t", "r", 0, 1, 2, 8.0))
    for kind in ("votes", "gaussian"):
        refused = vault.score(ask(kind, kind))
        assert (
            isinstance(refused, Refused)
            and refused.kind == "budget"
            and "is spent already" in refused.reason
        )
    assert len(charged(vault)) == 1 and not (vault.config.folder / "scorers").exists()


def test_a_crash_after_the_charge_is_made_good_without_a_second(site, monkeypatch):
    for kind in ("votes", "gaussian"):
        with monkeypatch.context() as patch:
            patch.setattr(feedback, "noisy", lambda *_: 1 / 0)
            patch.setattr(feedback, "noisy_votes", lambda *_: 1 / 0)
            failed = site(kind).score(ask("s", kind))
        assert isinstance(failed, Refused) and failed.kind == "error"
        before = charged(site(kind))
        answer = site(kind).score(ask("s", kind))
        assert isinstance(answer, Scored) and charged(site(kind)) == before and len(before) == 1
        assert answer.receipt.noise_multiplier == before[0].noise_multiplier


def test_an_id_that_was_paid_for_open_scores_does_not_buy_votes_without_noise(site, monkeypatch):
    vault = taught(site())
    with monkeypatch.context() as patch:
        patch.setattr(vault._releases, "keep", lambda *_: 1 / 0)
        assert isinstance(vault.score(ask("s", "none")), Refused)  # charged as open, never answered
    answer = vault.score(ask("s", "votes"))
    assert isinstance(answer, Refused) and answer.kind == "ledger"
    assert "was charged" in (vault.config.folder / "failures.log").read_text()


def test_the_scorer_is_paid_for_once_in_a_run(site, monkeypatch):
    vault, trained, train = site(), [], feedback.train_scorer
    monkeypatch.setattr(
        feedback, "train_scorer", lambda *arguments: trained.append(arguments) or train(*arguments)
    )
    first = vault.score(ask("s0", "gaussian", rounds=3))
    ((*_, sigma, steps, _),) = trained
    assert (
        charged(vault) == [Event.gaussian(sigma, steps)]
        and ledger_of(vault).entries()[0].id == "r/scorer"
    )
    # the whole run's budget, not a third
    assert sigma == noise_multiplier_for(8.0, DELTA, 1.0, feedback.STEPS)
    receipt = first.receipt
    assert (receipt.mechanism, receipt.steps, receipt.clip, receipt.sample_rate) == (
        "dp-scorer",
        feedback.STEPS,
        feedback.CLIP,
        1.0,
    )
    assert 7.9 < receipt.epsilon <= 8
    records, labels, *_ = trained[0]
    second = site().score(ask("s1", "gaussian", round=1, rounds=3))
    third = vault.score(
        ask("s2", "gaussian", data=LabelledTexts(TEXTS[:3], [1, 1, 0]), round=2, rounds=3)
    )
    assert (
        second.scores == first.scores
        and second.receipt.epsilon_total == first.receipt.epsilon_total
    )
    assert len(third.scores) == 3 and len(trained) == 1 and len(charged(vault)) == 1
    assert len(records) == len(labels) == 32


def test_steps_charged_are_steps_run():
    quiet = Silent()
    train_scorer(np.eye(4), np.array([0, 1, 0, 1]), range(4), View.of(np.eye(4)), 2, 1.0, 7, quiet)
    assert quiet.asked == [2 * 4] * 7  # one draw a step, a number for every weight


def test_a_scorer_the_ledger_does_not_know_is_not_used(site):
    vault = site()
    vault.score(ask("s0", "gaussian"))
    for name in ("ledger.jsonl", "ledger.lock", "ledger.head"):
        (vault.config.folder / name).unlink()
    answer = vault.score(ask("s1", "gaussian"))
    assert isinstance(answer, Refused) and answer.kind == "ledger"
    assert "does not know" in (vault.config.folder / "failures.log").read_text()


def test_noise_from_a_seed_is_named_and_gives_the_same_scores(site):
    for kind, name in (("votes", "gaussian-votes"), ("gaussian", "dp-scorer")):
        one, two = (
            site(f"{kind}-{number}", seeded_noise=True, simulated=True).score(ask("s", kind))
            for number in range(2)
        )
        assert one.scores == two.scores and one.receipt.mechanism == f"{name} with seeded noise"
        assert site(f"{kind}-secure").score(ask("s", kind)).scores != one.scores


# --- Open scores ----------------------------------------------------------------------------------


def test_open_scores_are_the_slms_own_and_say_that_nothing_is_guaranteed(site):
    vault = taught(site())
    answer = vault.score(ask("s", "none"))
    rows = vault._slm("r").probabilities("local", TEXTS)
    np.testing.assert_allclose(answer.scores, rows[np.arange(12), DATA.labels], atol=1e-6)
    assert np.ptp(answer.scores) > 1e-4
    receipt = answer.receipt
    assert (receipt.mechanism, receipt.epsilon, receipt.epsilon_total, receipt.steps) == (
        "none",
        math.inf,
        math.inf,
        0,
    )
    (entry,) = ledger_of(vault).entries()
    assert (entry.what, entry.event.kind, entry.released) == ("scores", "none", 12)


def test_after_open_scores_the_budget_goes_on_for_what_is_protected(site):
    """The site's total is infinite, and says so; its protected releases still end below the
    budget."""
    vault = taught(site())
    vault.score(ask("s", "none"))
    votes_answer = vault.score(ask("v", "votes", epsilon=3.0, run="other"))
    assert votes_answer.receipt.epsilon <= 3 and votes_answer.receipt.epsilon_total == math.inf
    over = vault.synthesize(Synthesize("t", "third", 0, 1, 2, 8.0))
    assert (
        isinstance(over, Refused)
        and over.kind == "budget"
        and "for other runs; run third asks" in over.reason
    )
    assert isinstance(vault.synthesize(Synthesize("t", "third", 0, 1, 2, 3.0)), Synthesized)
    protected = [event for event in charged(vault) if event.kind != "none"]
    assert (
        len(protected) == 2
        and compose(protected, DELTA) <= 8
        and ledger_of(vault).spent() == math.inf
    )
    unprotected = vault.synthesize(Synthesize("u", "fourth", 0, 1, 2, math.inf))
    # the leave is for scores, not for texts
    assert isinstance(unprotected, Refused) and "without a guarantee" in unprotected.reason
    strict = site(policy={"share_scores": "private"}).score(
        ask("w", "votes", epsilon=1.0, run="fifth")
    )
    # no total left to keep
    assert (
        isinstance(strict, Refused) and strict.kind == "budget" and "unprotected" in strict.reason
    )


def test_a_baselines_scores_are_charged_to_what_would_have_left(site):
    for kind, event in (("none", "none"), ("votes", "gaussian"), ("gaussian", "gaussian")):
        vault = taught(site(kind, counterfactual_baselines=True))
        vault.learn(Learn("w", "r", "fedavg", share_weights=True))
        answer = vault.score(ask("b", kind, counterfactual=True))
        assert isinstance(answer, Scored), answer
        assert not (vault.config.folder / "ledger.jsonl").exists()
        assert [
            entry.event.kind for entry in ledger_of(vault, "counterfactual.jsonl").entries()
        ] == ["none", event]
        # the run's own pays in its own ledger
        assert isinstance(vault.score(ask("m", kind)), Scored) and len(charged(vault)) == 1
    real = taught(site("real")).score(ask("b", "none", counterfactual=True))
    assert isinstance(real, Refused) and "only in a simulation" in real.reason


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "request_", "says"),
    [
        ({"methods": ("learn",)}, ask(), "method 'score' is not allowed"),
        ({"share_scores": "never"}, ask(), "share_scores is never"),
        ({"share_scores": "private"}, ask(feedback="none"), "allowed: feedback votes or gaussian"),
        ({"minimum_records": 33}, ask(), "32 records; allowed: at least 33"),
        ({"maximum_texts_per_release": 11}, ask(), "asked for 12 scores; allowed: at most 11"),
        ({"epsilon_per_run": 2.0}, ask(), "found 8 for the run; allowed: at most 2"),
        ({"allow_unprotected": True}, ask(epsilon=math.inf), "found inf for feedback votes"),
        (
            {"allow_unprotected": True},
            ask(feedback="gaussian", epsilon=math.inf),
            "found inf for feedback gaussian",
        ),
        ({}, ask(epsilon=math.nan), "epsilon: found nan"),
        ({}, ask(delta=0.5, round=1), "round: found 1 of 1"),
        ({}, ask(rounds=10**9), "1 to 1000 rounds"),
        ({}, ask(data=LabelledTexts()), "found no texts to score"),
        ({}, ask(data=LabelledTexts(["a", "b"], [0, 2])), "row 1 has label 2; allowed: 0 to 1"),
        ({}, ask(data=LabelledTexts(["a"], [-1])), "row 0 has label -1"),
        ({}, ask(feedback="none"), "keeps no model 'local'"),
    ],
)
def test_what_is_not_granted_is_refused_and_leaves_no_trace(site, policy, request_, says):
    vault = site(policy=policy)
    answer = vault.score(request_)
    assert isinstance(answer, Refused) and answer.kind == "policy" and says in answer.reason
    assert not list(vault.config.folder.rglob("*.jsonl")) and not list(
        vault.config.folder.rglob("*.release")
    )


def test_votes_need_no_model_of_the_site(site):
    assert isinstance(site().score(ask(model="nothing")), Scored)


# --- Public embeddings ----------------------------------------------------------------------------


def test_the_embedding_knows_nothing_of_private_records(site, monkeypatch):
    """Texts get the same vectors at a site with other records, and after its SLM learnt from
    them."""
    made, original = [], feedback.embed
    monkeypatch.setattr(
        feedback,
        "embed",
        lambda *arguments: made.append((arguments, original(*arguments))) or made[-1][1],
    )
    vault = site("one")
    vault.score(ask("a", epsilon=4.0))
    taught(vault)
    vault.score(ask("b", run="second", epsilon=2.0))
    site("other", client="tents").score(ask("a"))
    public = [rows for (_, _, _, private), rows in made if not private]
    assert len(public) == 3 and public[0].shape == (12, 32)
    for rows in public[1:]:
        np.testing.assert_array_equal(rows, public[0])
    one, other = [rows for (_, _, _, private), rows in made if private]
    assert one.shape == other.shape == (32, 32) and np.abs(one - other).max() > 0.01


def test_a_records_vector_is_its_own(site):
    """Not even the last bits depend on which other records there are, nor on their lengths."""
    config = site().config
    texts = [record.text for record in load_client(config.task, "coffee", 0).train]
    slm = config.slm.model_copy(update={"max_tokens": 96})  # so that lengths differ
    together = embed(texts, "slm", slm, private=True)
    alone = np.stack([embed([text], "slm", slm, private=True)[0] for text in texts])
    np.testing.assert_array_equal(alone, together)
    batched = embed(texts, "slm", slm)
    np.testing.assert_allclose(batched, alone, atol=1e-5)
    assert (batched != alone).any()  # in a batch they do
    assert embed(texts, "auto", config.slm).shape == (32, 32)
    built_in = config.slm.model_copy(update={"path": "builtin:slm"})
    assert (
        embed(texts, "auto", built_in).shape
        == (32, 1024)
        == embed(texts, "words", config.slm).shape
    )
    assert Counter(map(type, embed(texts[:1], "words", config.slm)[0])) == {np.float64: 1024}
