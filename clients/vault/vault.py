"""The vault: everything that touches a site's private text, behind a handful of methods.

Only what a method returns can leave, and it returns only after the ledger has written the charge to disk and the policy has agreed.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

from clients.vault import policy as rules
from clients.vault.config import SiteConfig
from clients.vault.ledger import Ledger, LedgerError
from clients.vault.policy import PolicyError
from clients.vault.releases import Releases
from clients.vault.slm import SLM
from clients.vault.synthesis import write_demonstrations
from conf.check import ConfigError
from lm.accounting import BudgetError, Event
from lm.dpsgd import planned_steps
from lm.randomness import NoiseSource, SecureNoise, SeededNoise
from tasks.load import build_task, load_client, load_pooled
from tasks.task import Split
from wire.codec import Arrays
from wire.messages import Evaluate, Evaluated, Introduced, Learn, Learned, Receipt, Refused, Synthesize, Synthesized

FAILURES = "failures.log"  # in the site's folder, with tracebacks; may quote records
_log = logging.getLogger(__name__)


def _write_down(folder: Path, what: str) -> None:
    """The exception being handled, to the site's own log and file."""
    _log.exception("%s", what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(os.open(folder / FAILURES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n{traceback.format_exc()}\n")
    except OSError as failure:
        _log.error("%s: cannot write %s: %s", what, folder / FAILURES, failure)


def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a policy's or ledger's no into a `Refused` answer with its reason, and any other failure into one without.

    What training or reading raised may quote a record, and Flower sends an exception's text to the server: it stays in `FAILURES`.
    """

    @wraps(method)
    def answer(self: Vault, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except PolicyError as no:
            refused = Refused(no.reason, "policy")
        except BudgetError as no:
            refused = Refused(str(no), "budget")
        except LedgerError as no:
            refused = Refused(str(no), "ledger")
        except ConfigError:
            _write_down(self.config.folder, f"{self.config.client}: {method.__name__} cannot use its data or models")
            refused = Refused(f"{method.__name__}: this site's data or models cannot be used; its {FAILURES} says why", "data")
        except Exception as failure:
            _write_down(self.config.folder, f"{self.config.client}: {method.__name__} failed")
            refused = Refused(f"{method.__name__} failed with {type(failure).__name__}; the site's {FAILURES} says why", "error")
        return (refused, None) if method.__name__ == "learn" else refused

    return answer


class Vault:
    """One site. Opening it reads nothing; records are read when first needed and stay inside."""

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self.task = build_task(config.task)
        self._releases = Releases(config.folder / "releases")
        self._measurements = Releases(config.folder / "measurements")

    @cached_property
    def _records(self) -> Split:
        config = self.config
        return load_pooled(config.task, config.seed) if config.pooled else load_client(config.task, config.client, config.seed)

    @property
    def domain(self) -> str:
        """The public wording of the site's domain."""
        return self.task.domains.get(self.config.client, self.config.client)

    def introduce(self) -> Introduced:
        """The site's public name and domain."""
        return Introduced(self.config.client, self.domain)

    @refusing
    def synthesize(self, request: Synthesize) -> Synthesized | Refused:
        """DP-synthetic texts with their receipt; the charge is on disk before training starts.

        The noise is planned over all rounds of the run together, on top of everything the ledger holds. The same message id again
        returns the first answer; if the site died in between, the charge stands and the mechanism that was paid for runs again.
        """
        if (earlier := self._releases.find(request.message_id)) is not None:
            return earlier
        train = self._records.train
        rules.check_synthesize(self.config.policy, request, len(train), len(self.task.labels))
        delta = rules.delta_for(self.config.policy, len(train), request.delta)
        ledger = self._ledger(delta)
        steps, rate = planned_steps(self.config.generator, len(train))
        paid = ledger.find(request.message_id)
        if paid is not None:
            event = paid.entry.event
        else:
            sigma = ledger.plan(request.epsilon, request.run, rate, steps, request.rounds - request.round)
            event = Event.poisson_gaussian(sigma, rate, steps) if sigma > 0 else Event.none()
        if event.kind == "none" and not self.config.policy.allow_unprotected:
            raise PolicyError("this message was charged when the site allowed unprotected releases; it does not any more")
        count = request.per_label * len(self.task.labels)
        charge = ledger.charge(request.message_id, request.run, "dp-sgd", event, count, epsilon_run=request.epsilon)
        data, dropped, report = write_demonstrations(
            train,
            self.task,
            self.domain,
            self.config.generator,
            event.noise_multiplier,
            request.per_label,
            self._randomness(request.round),
            request.seed,
        )
        if event.kind != "none" and (report.steps, report.sample_rate) != (event.steps, event.sample_rate):
            ran = f"training ran {report.steps} steps at rate {report.sample_rate}"
            raise LedgerError(f"{ran}, but {event.to_dict()} was charged; nothing was released")
        receipt = Receipt(
            self._mechanism(event),
            charge.epsilon,
            delta,
            charge.epsilon_total,
            len(data),
            event.noise_multiplier,
            rate,
            steps,
            self.config.generator.clip,
            len(train),
        )
        return self._releases.keep(request.message_id, Synthesized(data, receipt, dropped))

    @refusing
    def learn(self, request: Learn, arrays: Arrays | None = None) -> tuple[Learned | Refused, Arrays | None]:
        """Train the SLM and keep it; weights leave only for FedAvg, if the policy says so, recorded as unprotected."""
        began = time.monotonic()
        split = self._records
        weights_policy, ledger_name = self._terms_of_weights()
        rules.check_learn(weights_policy, request, len(split.train))
        rules.check_rows(request.data, len(self.task.labels))
        slm = self._slm(request.run)
        steps = slm.train(request, split, arrays or {})
        seconds = round(time.monotonic() - began, 1)  # no finer: it depends on the lengths of private texts
        learned = Learned(request.model, len(split.train) if request.private else 0, len(request.data), steps, seconds)
        if not request.share_weights:
            return learned, None
        weights = slm.weights(request.model)
        ledger = self._ledger(rules.delta_for(weights_policy, len(split.train)), weights_policy, ledger_name)
        charge = ledger.charge(request.message_id, request.run, "weights", Event.none(), len(weights))
        receipt = Receipt("none", charge.epsilon, ledger.delta, charge.epsilon_total, len(weights), records=len(split.train))
        return replace(learned, receipt=receipt), weights

    @refusing
    def evaluate(self, request: Evaluate) -> Evaluated | Refused:
        """Right answers of a kept model (or of the simulation's pooled one) on the site's test split.

        A server may choose the model, so every count is an exact query of its choice to the test records: the policy says how many.
        """
        measured = f"{request.message_id} {request.model}"
        if (earlier := self._measurements.find(measured)) is not None:
            return earlier
        rules.check_evaluate(self.config.policy, request, self._measurements.count())
        if request.scope == "pooled" and self.config.pooled_folder is None:
            raise PolicyError("only a simulation has a model of all sites' records together")
        folder = self.config.pooled_folder if request.scope == "pooled" else self.config.folder
        right = self._slm(request.run, folder).right(request.model, self._records.test)
        name = self.config.client
        return self._measurements.keep(measured, Evaluated(request.model, {name: int(right.sum())}, {name: len(right)}))

    def _slm(self, run: str, folder: Path | None = None) -> SLM:
        config = self.config.slm
        if self.config.pooled:  # an upper bound: it may take as many steps as all sites together
            config = config.model_copy(update={"max_steps": config.max_steps * len(self.task.clients)})
        return SLM(config, len(self.task.labels), (folder or self.config.folder) / "models" / run)

    def _terms_of_weights(self) -> tuple[rules.Policy, str]:
        """Policy and ledger for weights: the site's own, or, for a simulation's baselines, the open ones of what would have left."""
        if not self.config.counterfactual_baselines:
            return self.config.policy, "ledger.jsonl"
        return self.config.policy.model_copy(update={"share_weights": True, "allow_unprotected": True}), "counterfactual.jsonl"

    def _ledger(self, delta: float, policy: rules.Policy | None = None, name: str = "ledger.jsonl") -> Ledger:
        policy = policy or self.config.policy
        return Ledger(self.config.folder / name, policy.epsilon_total, delta, policy.allow_unprotected)

    def _mechanism(self, event: Event) -> str:
        if event.kind == "none":
            return "none"
        return "dp-sgd with seeded noise" if self.config.seeded_noise else "dp-sgd"  # whoever knows the seed can take the noise off

    def _randomness(self, round: int) -> NoiseSource:
        return SeededNoise(self.config.seed, self.config.client, round) if self.config.seeded_noise else SecureNoise()
