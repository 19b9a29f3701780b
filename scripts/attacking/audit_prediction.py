"""Audit of private prediction: what the tokens of a text tell of one unit whose context is as bad
as clipping lets it be.

Worst case: every canary has a release of its own, in which it is the one context that is not null.
The vault's own rule draws all tokens from scores that the adversary chose; the public LM is not
needed for it.
"""

from __future__ import annotations

import numpy as np
import torch
from fedduet.clients.vault.config import GeneratorConfig
from fedduet.clients.vault.prediction import predicting
from fedduet.lm.attacks.one_run_audit import Audit, audit_apart
from fedduet.lm.dp.accounting import Event, compose
from fedduet.lm.dp.private_prediction import ClippedDifferences, Rule
from fedduet.lm.dp.zcdp import rho_for
from fedduet.lm.randomness import NoiseSource, SecureNoise, numpy_generator

KINDS = {
    "private_prediction": (
        "black box, worst case: texts of which the canary's context decides every token"
    ),
}
_PER_LABEL = 8  # texts of a label [O]
_FAR = 50.0  # of log-likelihood ratios, so that an impossible token is a number


def audit_prediction(
    config: GeneratorConfig, epsilon: float, delta: float, canaries: int, seed: int, units: int
) -> tuple[float, Audit]:
    """(epsilon of the accountant, the audit) of texts of a site with `units` units and two labels,
    as configured."""
    asked = predicting(config, rho_for(epsilon, delta), units, 2, _PER_LABEL)
    included = numpy_generator(seed, "audited predictions").random(canaries) < 0.5
    scores = released_by(asked.made_rule(), asked.tokens * asked.texts, included, SecureNoise())
    claimed = compose([Event.zcdp(asked.rho)], delta)
    return claimed, audit_of(scores, included, delta)


def audit_of(scores: np.ndarray, included: np.ndarray, delta: float) -> Audit:
    """The bounds from scores [n]; by the curve among zCDP mechanisms."""
    return audit_apart(
        scores.tolist(), included.tolist(), delta, lambda noise: Event.zcdp(1 / (2 * noise**2))
    )


def released_by(
    rule: Rule, tokens: int, included: np.ndarray, randomness: NoiseSource
) -> np.ndarray:
    """Log-likelihood ratios [n] of in against out, over `tokens` tokens of each canary's release.

    There are three tokens. For seven of eight canaries the public LM has two alike, and the context
    prefers the first of them to the second with all its might; for the others it has the third a
    little above the edge of the set that may be drawn, and that one is preferred.
    """
    n = len(included)
    edge = -1.9 * rule.clip / rule.contexts if isinstance(rule, ClippedDifferences) else -_FAR
    public = torch.log_softmax(torch.tensor([[0.0, 0.0, -_FAR], [0.0, 0.0, edge]]), dim=-1)
    wants = torch.tensor([[1.0, -1.0, 0.0], [-1.0, -1.0, 1.0]])
    pattern = (torch.arange(n) // 2 % 8 == 0).long()
    publics, private = public[pattern], (public + _FAR * wants)[pattern][:, None]
    present = torch.from_numpy(included)[:, None]
    rule = _narrow(rule)
    ratios = torch.stack(
        [
            _log_ratio(rule, one[None], (one + _FAR * want)[None, None])
            for one, want in zip(public, wants, strict=True)
        ]
    )
    total = torch.zeros(n, dtype=torch.float64)
    for _ in range(tokens):
        drawn = rule.draw(publics, private.clone(), present, randomness)
        total += ratios[pattern, drawn]
    return total.numpy()


def _narrow(rule: Rule) -> Rule:
    """The rule on the three tokens: two are its top-k."""
    values = vars(rule) | {"top_k": 2}
    return type(rule)(**values)


def _log_ratio(rule: Rule, public: torch.Tensor, private: torch.Tensor) -> torch.Tensor:
    """[3] what one token says, within +-50."""
    there, gone = torch.tensor([[True]]), torch.tensor([[False]])
    if isinstance(rule, ClippedDifferences):
        first, second = (
            torch.log_softmax(phi[0].double() / rule.temperature, dim=-1)
            for phi in (rule.scores(public, private.clone(), mask) for mask in (there, gone))
        )
        ratio = (first.clamp_min(-_FAR) - second.clamp_min(-_FAR)).clamp(-_FAR, _FAR)
        return ratio
    # of a noisy argmax the number of wins is enough: more of the token that was voted for
    means, tokens = rule.means(public, private, there)
    return torch.zeros(3, dtype=torch.float64).scatter(0, tokens[0], means[0].double())
