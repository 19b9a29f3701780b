"""Private prediction under audit: the rules stay below their claim and near it, and every broken
form is refuted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fedduet.lm.dp.accounting import Event, compose
from fedduet.lm.dp.private_prediction import ClippedDifferences, NoisyArgmax, cost
from fedduet.lm.dp.zcdp import rho_for
from fedduet.lm.randomness import SeededNoise
from fedduet.scripts.attacking import audit_prediction
from fedduet.scripts.attacking.audit import main
from fedduet.scripts.attacking.audit_prediction import audit_of, released_by

DELTA, CANARIES, TOKENS = 1e-5, 20_000, 24


def larger_bound(rule, claimed, tokens=TOKENS) -> float:
    included = np.random.default_rng(0).random(CANARIES) < 0.5
    found = audit_of(released_by(rule, tokens, included, SeededNoise(3)), included, DELTA)
    print(f"claimed {claimed:.2f}: at least {found.epsilon:.2f}, by the curve {found.by_curve:.2f}")
    return max(found.epsilon, found.by_curve)


def rule_for(epsilon) -> ClippedDifferences:
    return ClippedDifferences.of_rho(rho_for(epsilon, DELTA) / TOKENS, 8, 1.0, 2)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_clipped_differences_stay_below_their_claim_and_near_it(epsilon):
    rule = rule_for(epsilon)
    assert compose([Event.zcdp(cost(rule, TOKENS, 1))], DELTA) == pytest.approx(epsilon, rel=1e-6)
    bound = larger_bound(rule, epsilon)
    assert bound <= epsilon and (epsilon < 3 or bound > 0.45 * epsilon)


def test_noisy_argmax_stays_below_its_claim():
    bound = larger_bound(NoisyArgmax.of_rho(rho_for(8.0, DELTA) / TOKENS, 8, 2), 8.0)
    assert 1.0 < bound <= 8.0


@dataclass(frozen=True)
class NoClip(ClippedDifferences):
    """Differences as they are."""

    def scores(self, public, private, present):
        return replace(ClippedDifferences(**vars(self)), clip=1e3).scores(public, private, present)


@dataclass(frozen=True)
class PrivateTopK(ClippedDifferences):
    """The set is the top-k of the scores that private contexts took part in."""

    def scores(self, public, private, present):
        wide = replace(ClippedDifferences(**vars(self)), top_k=10**6)
        phi = wide.scores(public, private, present)
        least = phi.topk(self.top_k, dim=-1).values[:, -1:]
        return phi.masked_fill(phi < least, -torch.inf)


@dataclass(frozen=True)
class CountsPresent(ClippedDifferences):
    """Divides by the contexts that are there instead of B."""

    def scores(self, public, private, present):
        here = replace(ClippedDifferences(**vars(self)), contexts=1)
        return here.scores(public, private, present)


@dataclass(frozen=True)
class Shared(ClippedDifferences):
    """A context of two units: without the canary it is another context, not a null one."""

    def scores(self, public, private, present):
        other = torch.where(present[:, :, None], private, 2 * public[:, None] - private)
        return ClippedDifferences(**vars(self)).scores(public, other, torch.ones_like(present))


@pytest.mark.parametrize("broken", [NoClip, PrivateTopK, CountsPresent, Shared])
def test_broken_rules_are_refuted(broken):
    rule = rule_for(3.0)
    assert larger_bound(broken(**vars(rule)), 3.0) > 3.0


@pytest.mark.parametrize(
    ("ran", "paid"),
    [
        pytest.param(TOKENS, TOKENS / 4, id="only the tokens that a text came to are paid for"),
        pytest.param(2 * TOKENS, TOKENS, id="a record is in two batches"),
    ],
)
def test_tokens_that_nobody_paid_for_are_refuted(ran, paid):
    rule = ClippedDifferences.of_rho(rho_for(3.0, DELTA) / paid, 8, 1.0, 2)
    assert larger_bound(rule, 3.0, ran) > 3.0


def test_the_command_audits_as_configured(overrides, capsys, monkeypatch):
    noise = SeededNoise(5)
    monkeypatch.setattr(audit_prediction, "SecureNoise", lambda: noise)
    kept = [
        one for one in overrides if one.split("=")[0].split(".")[0] in ("task", "slm", "generator")
    ]
    asked = ["--kinds", "private_prediction", "--epsilons", "3,inf", "--canaries", "600"]
    assert main([*asked, *kept, "generator.prediction={tokens: 4}"]) == 0
    assert "every token" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(ClippedDifferences, "draw", NoClip.draw)
    monkeypatch.setattr(ClippedDifferences, "scores", lambda self, public, private, present: (
        public + 50 * (private - public[:, None]).mul_(present[:, :, None]).sum(dim=1)
    ))  # fmt: skip
    assert main([*asked, *kept, "generator.prediction={tokens: 4}"]) == 1
