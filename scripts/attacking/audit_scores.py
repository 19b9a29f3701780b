"""Audits of CrossLM's protected scores: what a server learns from them of records that it guesses,
text by text.

Worst case and black box: a malicious server sends every canary's own text, which no other record is
like, and sees the scores that the vault's own functions make of it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from fedduet.clients.vault import feedback
from fedduet.lm.attacks.one_run_audit import Audit, audit_apart
from fedduet.lm.dp.accounting import Event, compose, noise_multiplier_for
from fedduet.lm.randomness import SecureNoise, numpy_generator

KINDS = {
    "votes": "black box, worst case: scores by votes of texts that are the canaries' own",
    "gaussian": (
        "black box, worst case: scores by the private scorer of texts that are the canaries' own"
    ),
}
_AT_ONCE = 500  # canaries in one release


def audit_scores(
    kind: str,
    epsilon: float,
    delta: float,
    canaries: int,
    seed: int,
    classes: int = 2,
    each: int = 1,
) -> tuple[float, Audit]:
    """(epsilon of the accountant, the audit) of one release of scores by "votes" or "gaussian"; a
    canary is a user with `each` records."""
    steps = 1 if kind == "votes" else feedback.STEPS
    sigma = noise_multiplier_for(epsilon, delta, 1.0, steps)
    released = {"votes": released_by_votes, "gaussian": released_by_scorer}[kind]
    return compose([Event.gaussian(sigma, steps)], delta), audit_releases(
        released, sigma, steps, delta, canaries, seed, classes, each
    )


def audit_releases(
    released: Callable[..., list[float]],
    sigma: float,
    steps: int,
    delta: float,
    canaries: int,
    seed: int,
    classes: int = 2,
    each: int = 1,
) -> Audit:
    """The audit of as many releases, each on records of its own and of `steps` noisy sums, as
    `canaries` fill."""
    draw = numpy_generator(seed, "audited scores")
    scores: list[float] = []
    included: list[bool] = []
    while len(scores) < canaries:
        count = min(_AT_ONCE, canaries - len(scores))
        labels, coins = draw.integers(0, classes, count), draw.random(count) < 0.5
        scores += released(coins, labels, sigma, classes, each)
        included += coins.tolist()
    return audit_apart(scores, included, delta, lambda noise: Event.gaussian(noise, steps))


def released_by_votes(
    included: np.ndarray, labels: np.ndarray, sigma: float, classes: int, each: int
) -> list[float]:
    """Scores of n texts, text i alike canary i alone, of which those with `included` are `each`
    records of a unit of the site."""
    texts = np.eye(len(labels))
    owners = np.repeat(np.flatnonzero(included), each)
    total = feedback.vote_sum(texts[owners], labels[owners], texts, labels, classes, owners)
    noisy = feedback.noisy_votes(total, sigma, SecureNoise())
    return feedback.as_scores(
        feedback.opinions(noisy, texts, labels, classes, sigma, int(included.sum()))
    )


def released_by_scorer(
    included: np.ndarray, labels: np.ndarray, sigma: float, classes: int, each: int
) -> list[float]:
    """The same by a scorer that was trained on the records."""
    texts, view = np.eye(len(labels)), feedback.View(np.ones(len(labels)), np.zeros(len(labels)))
    owners = np.repeat(np.flatnonzero(included), each)
    scorer = feedback.train_scorer(
        texts[owners], labels[owners], owners, view, classes, sigma, feedback.STEPS, SecureNoise()
    )
    return feedback.of_labels(scorer.probabilities(texts), labels.tolist())
