"""Membership inference on scores: a malicious server sends candidate records in place of generated
texts and reads their scores."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.clients.simulated import simulated_site
from fedduet.clients.vault.config import SitesPart, read_sites
from fedduet.clients.vault.vault import Vault
from fedduet.conf.check import ConfigError
from fedduet.lm.attacks.membership import AUC, auc
from fedduet.tasks.task import Split
from fedduet.wire.messages import LabelledTexts, Learn, Refused, Score

MECHANISMS = ("votes", "gaussian", "none")


def membership_by_scores(
    config: Mapping[str, Any], client: str, split: Split, mechanism: str, epsilon: float
) -> dict[str, AUC]:
    """How well the score of a record's own text under its own label tells the training split from
    the test split.

    The vault is the one of a simulated site, with the whole epsilon for this one release. Raises
    ConfigError where it refuses.
    """
    candidates = [*split.train, *split.test]
    data = LabelledTexts(
        [record.text for record in candidates], [record.label for record in candidates]
    )
    with tempfile.TemporaryDirectory() as folder:
        vault = Vault(
            simulated_site(_granting(read_sites(config), epsilon), client, Path(folder) / "site")
        )
        if mechanism == "none":
            learned, _ = vault.learn(Learn("learn", "attack", "local"))
            _not_refused(learned)
        scored = _not_refused(
            vault.score(Score("score", "attack", "local", data, epsilon, feedback=mechanism))
        )
    members, scores = len(split.train), np.array(scored.scores)
    return {"score of a record's own text": auc(scores[:members], scores[members:])}


def _granting(part: SitesPart, epsilon: float) -> SitesPart:
    """`part` whose sites grant scores of this epsilon, whatever the run itself asks for."""
    policy = part.privacy.policy.model_copy(
        update={
            "epsilon_per_run": epsilon,
            "epsilon_total": epsilon,
            "allow_unprotected": True,
            "share_scores": "any",
        }
    )
    privacy = part.privacy.model_copy(update={"epsilon": epsilon, "policy": policy})
    return replace(part, privacy=privacy)


def _not_refused(reply: Any) -> Any:
    if isinstance(reply, Refused):
        raise ConfigError(f"the site refused: {reply.reason}")
    return reply
