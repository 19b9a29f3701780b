"""What a run will spend of every simulated site's privacy budget, exactly, by the site's own rules,
policy and ledger."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet.clients.simulated import simulated_site, site_folder
from fedduet.clients.vault import feedback
from fedduet.clients.vault.budget.ledger import Ledger
from fedduet.clients.vault.config import PrivacyConfig, SiteConfig
from fedduet.clients.vault.release import policy as rules
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.conf.check import ConfigError
from fedduet.lm.dp.accounting import BudgetError, Event, compose
from fedduet.lm.dp.adaptive import compose_adaptively
from fedduet.lm.dp.dpsgd import planned_steps
from fedduet.scripts.launching.run_config import RunConfig
from fedduet.strategies.crosslm import CrossLMConfig
from fedduet.strategies.fdkt import FDKTConfig
from fedduet.wire.messages import Synthesize

RUN = "check"


@dataclass(frozen=True)
class Spend:
    """Of one site: what the run alone spends and what the ledger will hold with it, both at
    `delta`; infinite: no guarantee."""

    epsilon: float
    total: float
    delta: float
    noise_multiplier: float


def spends(run: RunConfig, units: Mapping[str, int], labels: int) -> dict[str, Spend]:
    """By site, which has `units` units of privacy, for FDKT and CrossLM; {} for others.

    Raises ConfigError with a site's own words where it will refuse.
    """
    settings = run.server.strategy.settings
    if not isinstance(settings, FDKTConfig | CrossLMConfig):
        return {}
    found = {}
    for site, count in units.items():
        home = run.sites.state_folder / site_folder(site)
        try:
            found[site] = _spend(
                simulated_site(run.sites, site, home), settings, run.sites.privacy, count, labels
            )
        except (PolicyError, BudgetError, ValueError) as refusal:
            raise ConfigError(f"the site {site} would refuse: {refusal}") from None
    return found


def _spend(
    site: SiteConfig, settings: Any, privacy: PrivacyConfig, units: int, labels: int
) -> Spend:
    delta = rules.delta_for(site.policy, units, privacy.delta)
    unprotected = {"scores"} if site.policy.share_scores == "any" else set()
    with tempfile.TemporaryDirectory() as copy:
        path = Path(copy) / "ledger.jsonl"
        if (site.folder / "ledger.jsonl").is_file():
            shutil.copy(site.folder / "ledger.jsonl", path)
        ledger = Ledger(
            path,
            site.policy.epsilon_total,
            delta,
            site.policy.allow_unprotected,
            unprotected=unprotected,
            unit=site.policy.unit,
        )
        event, rounds = _plan(ledger, site, settings, privacy, units, labels)
        plan = event.times(rounds)
        total = compose_adaptively([*ledger.plans(), plan], delta)
        alone = math.inf if math.isinf(total) else compose([plan], delta)
    return Spend(alone, total, delta, event.noise_multiplier)


def _plan(
    ledger: Ledger, site: SiteConfig, settings: Any, privacy: PrivacyConfig, units: int, labels: int
) -> tuple[Event, int]:
    """What the vault will charge, planned as it plans: an event and how many rounds of it."""
    if isinstance(settings, FDKTConfig):
        request = Synthesize(
            "check",
            RUN,
            0,
            settings.rounds,
            settings.demonstrations_per_label,
            privacy.epsilon,
            privacy.delta,
            seed=site.seed,
        )
        rules.check_synthesize(site.policy, request, units, labels)
        if site.generator.predicts:
            rho = ledger.plan_rho(privacy.epsilon, RUN, settings.rounds)
            return Event.none() if math.isinf(rho) else Event.zcdp(rho), settings.rounds
        steps, rate = planned_steps(site.generator, units)
        sigma = ledger.plan(privacy.epsilon, RUN, rate, steps, settings.rounds)
        event = Event.poisson_gaussian(sigma, rate, steps) if sigma > 0 else Event.none()
        return event, settings.rounds
    if privacy.feedback == "votes":
        sigma = ledger.plan(privacy.epsilon, RUN, 1.0, 1, settings.rounds)
        return Event.gaussian(sigma, 1), settings.rounds
    if privacy.feedback == "gaussian":
        sigma = ledger.plan(privacy.epsilon, RUN, 1.0, feedback.STEPS, 1)
        return Event.gaussian(sigma, feedback.STEPS), 1
    return Event.none(), settings.rounds
