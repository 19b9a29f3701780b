"""Audits of protected scores, whole and broken; the broken forms live here only."""

import fedduet.scripts.attacking.audit_scores
import pytest
from fedduet.clients.vault import feedback
from fedduet.lm.dp.accounting import noise_multiplier_for
from fedduet.lm.randomness import SeededNoise
from fedduet.scripts.attacking.audit_scores import (
    audit_releases,
    audit_scores,
    released_by_scorer,
    released_by_votes,
)

DELTA, CANARIES, CLAIM = 1e-5, 4000, 3.0
FORMS = {"votes": (released_by_votes, 1), "gaussian": (released_by_scorer, feedback.STEPS)}


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """A bound holds with 95 % confidence; the tests are to give one answer."""
    noise = SeededNoise(5)
    monkeypatch.setattr(fedduet.scripts.attacking.audit_scores, "SecureNoise", lambda: noise)


@pytest.mark.parametrize("kind", FORMS)
def test_scores_stay_below_their_claim_and_the_audit_sees_more_than_half_of_it(kind):
    claimed, found = audit_scores(kind, 8.0, DELTA, 10_000, seed=0)
    assert claimed == pytest.approx(8.0, abs=0.02)
    assert 4.0 < found.by_curve <= claimed and 1.0 < found.epsilon <= claimed


def audited(kind, planned=CLAIM, sigma=1.0):
    """The larger of the two bounds; `planned`: the epsilon that the noise is for, `sigma`: a factor
    on it."""
    released, steps = FORMS[kind]
    noise = noise_multiplier_for(planned, DELTA, 1.0, steps) * sigma
    found = audit_releases(released, noise, steps, DELTA, CANARIES, seed=0)
    return max(found.epsilon, found.by_curve)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(
    "name", ["a thousandth of the noise", "records are not clipped", "half of the charge"]
)
def test_broken_scores_refute_their_claim(kind, name, monkeypatch):
    if name == "records are not clipped":  # a record counts as five
        whole_votes, whole_gradients = feedback.vote_sum, feedback.clipped_gradients
        monkeypatch.setattr(feedback, "vote_sum", lambda *given: 5 * whole_votes(*given))
        monkeypatch.setattr(
            feedback, "clipped_gradients", lambda *given: 5 * whole_gradients(*given)
        )
    bound = audited(
        kind,
        *{"half of the charge": (2 * CLAIM,), "a thousandth of the noise": (CLAIM, 1e-3)}.get(
            name, ()
        ),
    )
    # pytest -s -k broken: the table of docs/privacy.md
    print(f"| {kind} | {name} | {CLAIM:g} | {bound:.2f} |")
    assert bound > CLAIM, (kind, name)
