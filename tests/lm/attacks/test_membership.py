"""Attacks: areas against counting pairs, literal runs against a slow search, planted secrets, and a
generator that learned by heart."""

import itertools

import numpy as np
import pytest
from fedduet.lm.attacks.canaries import Secret, plant
from fedduet.lm.attacks.membership import (
    auc,
    longest_runs,
    mean_auc,
    nearest_scores,
    reference_scores,
)
from fedduet.lm.text.words import units
from hypothesis import given, settings
from hypothesis import strategies as st


def test_the_area_counts_pairs_and_its_interval_is_hanleys():
    found = auc([0.9, 0.8, 0.4, 0.4], [0.7, 0.4, 0.1])
    pairs = [
        (m > o) + 0.5 * (m == o)
        for m, o in itertools.product([0.9, 0.8, 0.4, 0.4], [0.7, 0.4, 0.1])
    ]
    assert found.value == pytest.approx(np.mean(pairs))
    a = found.value
    one, two = a / (2 - a), 2 * a * a / (1 + a)
    assert found.deviation**2 == pytest.approx(
        (a * (1 - a) + 3 * (one - a * a) + 2 * (two - a * a)) / 12
    )
    assert auc([1.0], [0.0]).high == 1.0 and auc([0.0], [1.0]).value == 0.0
    assert mean_auc([found, found]).deviation == pytest.approx(found.deviation / 2**0.5)
    with pytest.raises(ValueError, match="found 0 members"):
        auc([], [1.0])


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0)
    # true area: Phi(0.5 / sqrt(2)) = 0.638
    found = [auc(draws.normal(0.5, 1, 60), draws.normal(0, 1, 200)) for _ in range(300)]
    assert 0.91 < np.mean([one.low <= 0.6382 <= one.high for one in found]) < 0.99


words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=9).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_runs_equal_a_slow_search(texts, private):
    def slow(text):
        own = units(text)
        runs = [own[i:j] for i in range(len(own)) for j in range(i + 1, len(own) + 1)]
        others = [units(one) for one in private]
        return max(
            [
                len(r)
                for r in runs
                if any(r == o[k : k + len(r)] for o in others for k in range(len(o)))
            ],
            default=0,
        )

    assert longest_runs(texts, private) == [slow(text) for text in texts]


def test_nearest_is_of_the_same_label():
    found = nearest_scores(
        ["good red beans", "sour"], [1, 0], ["good red beans", "good red beans", "sour"], [1, 0, 2]
    )
    assert found == pytest.approx([1.0, 0.0, -1.0], abs=1e-6)


def test_secrets_are_planted_as_often_as_said_and_found_where_they_stand():
    texts, secrets = plant([f"text number {i}" for i in range(40)], (1, 10), seed=3)
    assert [secret.repeats for secret in secrets] == [1] * 10 + [10] and len(
        {secret.number for secret in secrets}
    ) == 11
    for secret in secrets:
        assert sum(secret.shown_by(text) == (True, True) for text in texts) == secret.repeats
    assert sum(text.startswith("text number") for text in texts) == 20
    assert plant(["a"] * 40, (1, 10), seed=4)[1] != secrets
    with pytest.raises(ValueError, match="found 5 records for 10 planted ones"):
        plant(["a"] * 5, (1,), 0)
    secret = Secret("mara quillon", "0142 5553", 1)
    assert secret.shown_by("Call MARA  Quillon.") == (True, False) and secret.shown_by(
        "(0142) 55-53"
    ) == (False, True)
    assert secret.shown_by("mara said 0142 5550") == (False, False)


def test_a_release_of_the_records_themselves_gives_the_members_away(tiny_model):
    """Of a release that is half of the candidates, word for word, no attack may be blind."""
    from fedduet.tasks.builtin.world import world_records

    records = world_records("coffee", 80, 5)
    members, texts = records[:40], [record.text for record in records]
    controls = [f"Rating: {record.label}\nReview: " for record in records]
    labels = [record.label for record in records]
    near = nearest_scores(
        [one.text for one in members], [one.label for one in members], texts, labels
    )
    assert auc(near[:40], near[40:]).value == 1.0
    released = (controls[:40] * 8, [one.text for one in members] * 8)
    loss = reference_scores(str(tiny_model), released, (controls, texts), 64, 0)
    assert auc(loss[:40], loss[40:]).low > 0.5
