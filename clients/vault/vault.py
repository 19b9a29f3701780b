"""The vault: everything that touches a site's private text, behind a handful of methods.

Only what a method returns can leave, and it returns only after the ledger has written the charge to
disk and the policy has agreed.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.clients.vault import feedback
from fedduet.clients.vault.budget.kept import bind
from fedduet.clients.vault.budget.ledger import Charge, Ledger, LedgerError
from fedduet.clients.vault.cards import write_generator_card, write_slm_card
from fedduet.clients.vault.config import GeneratorConfig, SiteConfig
from fedduet.clients.vault.counting import check_noise, noisy_count, right_by_unit
from fedduet.clients.vault.measured import detail
from fedduet.clients.vault.prediction import (
    MECHANISM,
    predict_demonstrations,
    predicting,
    site_secret,
)
from fedduet.clients.vault.refusing import refusing
from fedduet.clients.vault.release import policy as rules
from fedduet.clients.vault.release.once import Once
from fedduet.clients.vault.release.policy import PolicyError
from fedduet.clients.vault.release.privacy_unit import owners_of
from fedduet.clients.vault.release.releases import Releases, write_once
from fedduet.clients.vault.slm import SLM
from fedduet.clients.vault.synthesis import check_loads, write_demonstrations
from fedduet.clients.vault.trainings import (
    batch_seed,
    count_training,
    evened,
    public_rows,
    told_seconds,
)
from fedduet.conf.check import ConfigError
from fedduet.lm.dp.accounting import BudgetError, Event, compose
from fedduet.lm.dp.dpsgd import planned_steps
from fedduet.lm.dp.private_prediction import cost
from fedduet.lm.models.card import TEST_ACCURACY, add_metric
from fedduet.lm.randomness import NoiseSource, SeededNoise, derive
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.data.load import build_task, load_client, load_pooled
from fedduet.tasks.task import Split
from fedduet.wire.codec import Arrays, encode
from fedduet.wire.messages import (
    Evaluate,
    Evaluated,
    Introduced,
    Learn,
    Learned,
    Receipt,
    Refused,
    Score,
    Scored,
    Synthesize,
    Synthesized,
)


class Vault:
    """One site. Opening it reads nothing; records are read when first needed and stay inside."""

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        if not isinstance(config.task, TaskConfig):
            raise ConfigError(f"task.kind: found {config.task.kind}; this vault holds texts")
        self._texts = config.task
        self.task = build_task(config.task)
        self._releases = Releases(config.folder / "releases")
        self._measurements = Releases(config.folder / "measurements")

    @property
    def _generator(self) -> GeneratorConfig:
        if self.config.generator is None:
            raise PolicyError("this site has no DP generator, so it gives no demonstrations")
        return self.config.generator

    @cached_property
    def _records(self) -> Split:
        config, by_user = self.config, self.config.policy.unit == "user"
        return (
            load_pooled(self._texts, config.seed, by_user)
            if config.pooled
            else load_client(self._texts, config.client, config.seed, by_user)
        )

    @cached_property
    def _owners(self) -> list[int]:
        """The unit of privacy that each training record belongs to: itself, or its user."""
        return owners_of(self._records.train, self.config.policy.unit)

    @property
    def _units(self) -> int:
        """n, the number of units: the only number about the training records that what leaves is
        allowed to depend on."""
        return len(set(self._owners))

    @cached_property
    def _test_owners(self) -> list[int]:
        return owners_of(self._records.test, self.config.policy.unit)

    @property
    def _test_units(self) -> int:
        """The number of units of the test split, public as n is."""
        return len(set(self._test_owners))

    @cached_property
    def _generator_loads(self) -> bool:
        check_loads(self._generator)
        return True

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

        The noise is planned over all rounds of the run together, on top of everything the ledger
        holds. The same message id again returns the first answer; if the site died in between, the
        charge stands and the mechanism that was paid for runs again.
        """
        if (earlier := self._earlier(request)) is not None:
            return earlier
        train = self._records.train
        rules.check_synthesize(self.config.policy, request, self._units, len(self.task.labels))
        self._generator_loads  # noqa: B018  before anything is charged
        delta = rules.delta_for(self.config.policy, self._units, request.delta)
        ledger = self._ledger(delta)
        if self._generator.predicts:
            return self._predict(request, ledger)
        steps, rate = planned_steps(self._generator, self._units)

        def plan() -> Event:
            sigma = ledger.plan(request.epsilon, request.run, rate, steps, left)
            return Event.poisson_gaussian(sigma, rate, steps) if sigma > 0 else Event.none()

        left = self._rounds_left(request)
        event = self._paid_or_planned(ledger, request.message_id, request.run, "dp-sgd", plan)
        if event.kind == "none" and not self.config.policy.allow_unprotected:
            raise PolicyError(
                "this message was charged when the site allowed unprotected releases; it does not"
                " any more"
            )
        if (earlier := self._earlier(request)) is not None:
            return earlier  # of a twin, made while this one planned
        per_label = request.per_label + request.extra  # samples of one model cost nothing more
        count = per_label * len(self.task.labels)
        charge, once = self._charge(ledger, request, "dp-sgd", event, count, rounds=left)
        data, dropped, report = write_demonstrations(
            train,
            self._owners,
            self.task,
            self.domain,
            self._generator,
            event.noise_multiplier,
            per_label,
            self._randomness(once, request.round),
            derive(request.seed, "site", self.config.client),
            keep=(
                kept := self.config.folder / "models" / request.run / f"generator-{request.round}"
            ),
        )
        if event.kind != "none" and (report.steps, report.sample_rate) != (
            event.steps,
            event.sample_rate,
        ):
            ran = f"training ran {report.steps} steps at rate {report.sample_rate}"
            raise LedgerError(f"{ran}, but {event.to_dict()} was charged; nothing was released")
        receipt = Receipt(
            self._mechanism("dp-sgd", charge.entry.event),
            charge.epsilon,
            delta,
            charge.epsilon_total,
            len(data),
            event.noise_multiplier,
            rate,
            steps,
            self._generator.clip,
            self._units,
            unit=self.config.policy.unit,
            epsilon_fixed=charge.epsilon_fixed,
            ledger_head=charge.head,
        )
        write_generator_card(kept, self.config, self.domain, receipt)
        return self._kept(request.message_id, Synthesized(data, receipt, dropped), charge, ledger)

    def _predict(self, request: Synthesize, ledger: Ledger) -> Synthesized:
        """The same texts by private prediction: rho is planned over all rounds, and nothing is
        trained."""
        config, left = self._generator, self._rounds_left(request)

        def plan() -> Event:
            rho = ledger.plan_rho(request.epsilon, request.run, left)
            return Event.none() if math.isinf(rho) else Event.zcdp(rho)

        event = self._paid_or_planned(ledger, request.message_id, request.run, MECHANISM, plan)
        if event.kind == "none" and not self.config.policy.allow_unprotected:
            raise PolicyError(
                "this message was charged when the site allowed unprotected releases; it does not"
                " any more"
            )
        labels = len(self.task.labels)
        rho = event.rho if event.kind == "zcdp" else math.inf
        asked = predicting(config, rho, self._units, labels, request.per_label)
        if (earlier := self._earlier(request)) is not None:
            return earlier  # of a twin, made while this one planned
        count = request.per_label * labels
        charge, once = self._charge(ledger, request, MECHANISM, event, count, rounds=left)
        rule = asked.made_rule()
        if event.kind == "zcdp" and cost(rule, asked.tokens, asked.texts) > rho * (1 + 1e-9):
            raise LedgerError(f"{rule} costs more than {event.to_dict()}; nothing was released")
        data, dropped = predict_demonstrations(
            self._records.train,
            self.config.policy.unit,
            self.task,
            self.domain,
            config,
            asked,
            self._randomness(once, "prediction", request.round),
            request.seed,
            site_secret(self.config),
        )
        receipt = Receipt(
            self._mechanism(MECHANISM, charge.entry.event),
            charge.epsilon,
            ledger.delta,
            charge.epsilon_total,
            len(data),
            steps=asked.tokens * asked.texts,
            clip=getattr(rule, "clip", 1.0),
            records=self._units,
            unit=self.config.policy.unit,
            epsilon_fixed=charge.epsilon_fixed,
            ledger_head=charge.head,
        )
        return self._kept(request.message_id, Synthesized(data, receipt, dropped), charge, ledger)

    @refusing
    def learn(
        self, request: Learn, arrays: Arrays | None = None
    ) -> tuple[Learned | Refused, Arrays | None]:
        """Train the SLM and keep it; weights leave only for FedAvg, if the policy says so, recorded
        as unprotected.

        What is told of a training is public: n, steps planned for n, the number of rows sent. So is
        the work: rows of a real site are all padded to one length, and a secret of the site draws
        its batches.
        """
        began = time.monotonic()
        split = self._records
        weights_policy, ledger_name = self._terms_of_weights()
        rules.check_learn(weights_policy, request, self._units, bool(arrays))
        rules.check_rows(request.data, len(self.task.labels))
        slm = self._slm(request.run)
        slm.check_start(request)
        count_training(self.config, request)
        rows, seed = public_rows(self.config, self._units), batch_seed(self.config, request)
        if self.config.policy.unit == "user" and not self.config.repeatable:
            each = self._generator.records_per_user
            split = replace(split, validation=evened(split.validation, each))
        trained = slm.train(request, split, arrays or {}, rows, seed)
        kept = self.config.folder / "models" / request.run / request.model
        write_slm_card(
            kept, self.config, self.task, self.domain, request, len(split.train), trained.steps
        )
        learned = Learned(
            model=request.model,
            private_units=self._units if request.private else 0,
            generated_rows=len(request.data),
            steps=trained.steps,
            private_passes=trained.private_passes,
            generated_passes=trained.generated_passes,
            checkpoint=trained.checkpoint,
            seconds=told_seconds(self.config, began),
        )
        if not request.share_weights:
            return learned, None
        weights = slm.weights(request.model)
        ledger = self._ledger(
            rules.delta_for(weights_policy, self._units), weights_policy, ledger_name
        )
        charge = ledger.charge(
            request.message_id, request.run, "weights", Event.none(), len(weights)
        )
        receipt = Receipt(
            "none",
            charge.epsilon,
            ledger.delta,
            charge.epsilon_total,
            len(weights),
            records=self._units,
            unit=weights_policy.unit,
            epsilon_fixed=charge.epsilon_fixed,
            ledger_head=charge.head,
        )
        return replace(learned, receipt=receipt), weights

    @refusing
    def evaluate(self, request: Evaluate) -> Evaluated | Refused:
        """Right answers of a kept model (or of the simulation's pooled one) on the site's test
        split.

        A server chooses what a model learns, so a count answers a question of its choice about the
        site's records. A real site gives it with noise and charged, of models that saw no private
        record, or exactly where the policy grants that, as an unprotected release. In a simulation
        counts are exact and free: nobody gets them.
        """
        measured = f"{request.message_id} {request.model}"
        if (earlier := self._measurements.find(measured)) is not None:
            return earlier
        rules.check_evaluate(self.config.policy, request, self._measurements.count())
        if request.scope == "pooled" and self.config.pooled_folder is None:
            raise PolicyError("only a simulation has a model of all sites' records together")
        if request.epsilon is not None:
            return self._noisy_count(request, measured)
        folder = self.config.pooled_folder if request.scope == "pooled" else self.config.folder
        slm, test = self._slm(request.run, folder), self._records.test
        probabilities = slm.probabilities(request.model, [record.text for record in test])
        labels, name = [record.label for record in test], self.config.client
        right = probabilities.argmax(axis=1) == np.array(labels)
        receipt = None if self.config.simulated else self._counted_openly(request, measured)
        if request.scope == "own":
            add_metric(
                self.config.folder / "models" / request.run / request.model,
                TEST_ACCURACY,
                float(right.mean()),
                len(right),
            )
        return self._measurements.keep(
            measured,
            Evaluated(
                request.model,
                {name: int(right.sum())},
                {name: len(right)},
                receipt,
                detail(probabilities, labels) if self.config.simulated else None,
            ),
        )

    def _counted_openly(self, request: Evaluate, measured: str) -> Receipt:
        """The receipt of an exact count."""
        ledger = self._ledger(rules.delta_for(self.config.policy, self._units))
        charge = ledger.charge(measured, request.run, "counts", Event.none(), 1)
        return Receipt(
            "none",
            charge.epsilon,
            ledger.delta,
            charge.epsilon_total,
            1,
            records=self._units,
            unit=self.config.policy.unit,
            epsilon_fixed=charge.epsilon_fixed,
            ledger_head=charge.head,
        )

    def _noisy_count(self, request: Evaluate, measured: str) -> Evaluated:
        """A count of units with noise that is planned over the run's rounds of such counts, on top
        of the whole ledger, and charged before it is drawn."""
        slm = self._slm(request.run)
        if not slm.is_public(request.model):
            raise PolicyError(
                f"model {request.model!r} saw private records, and one of them may change all of a"
                " test count; allowed: noisy counts of models that learned with private false"
            )
        delta = rules.delta_for(self.config.policy, self._units, request.delta)
        ledger, units = self._ledger(delta), self._test_units
        left, what = self._rounds_left(request), "gaussian-count"

        def plan() -> Event:
            sigma = ledger.plan(request.epsilon or 0.0, request.run, 1.0, 1, left)
            check_noise(sigma, units)
            return Event.gaussian(sigma)

        event = self._paid_or_planned(ledger, measured, request.run, what, plan)
        charge, once = self._charge(ledger, request, what, event, 1, left, measured)
        sigma = event.noise_multiplier
        right = right_by_unit(slm.right(request.model, self._records.test), self._test_owners)
        noise = self._randomness(once, "count", measured)
        count, name = noisy_count(right, units, sigma, noise), self.config.client
        receipt = Receipt(
            self._mechanism("gaussian-count", charge.entry.event),
            charge.epsilon,
            delta,
            charge.epsilon_total,
            1,
            sigma,
            1.0,
            1,
            1.0,
            units,
            unit=self.config.policy.unit,
            epsilon_fixed=charge.epsilon_fixed,
            ledger_head=charge.head,
        )
        answer = Evaluated(request.model, {name: count}, {name: units}, receipt)
        return self._kept(measured, answer, charge, ledger, self._measurements)

    @refusing
    def score(self, request: Score) -> Scored | Refused:
        """One score for each text, protected as `request.feedback` says; the charge is on disk
        before the noise is drawn.

        A repeated id gets its first answer. "gaussian" is charged once for a run: its later scores
        are post-processing of one scorer.
        """
        policy, ledger_name = self._terms_of_scores(request.counterfactual)
        if (earlier := self._earlier(request, ledger_name)) is not None:
            return earlier
        rules.check_score(policy, request, self._units, len(self.task.labels))
        ledger = self._ledger(
            rules.delta_for(policy, self._units, request.delta), policy, ledger_name
        )
        by = {
            "none": self._score_openly,
            "votes": self._score_by_votes,
            "gaussian": self._score_by_scorer,
        }[request.feedback]
        scores, charge = by(request, ledger)
        event, name = charge.entry.event, charge.entry.what
        steps = event.count if event.kind == "gaussian" else 0
        clip = {"gaussian-votes": 1.0, "dp-scorer": feedback.CLIP}.get(name, 0.0)
        receipt = Receipt(
            self._mechanism(name, event),
            charge.epsilon,
            ledger.delta,
            charge.epsilon_total,
            len(scores),
            event.noise_multiplier,
            1.0 if steps else 0.0,
            steps,
            clip,
            self._units,
            unit=policy.unit,
            epsilon_fixed=charge.epsilon_fixed,
            ledger_head=charge.head,
        )
        return self._kept(request.message_id, Scored(scores, receipt), charge, ledger)

    def _score_openly(self, request: Score, ledger: Ledger) -> tuple[list[float], Charge]:
        """p(label | text) of the site's own SLM."""
        probabilities = self._slm(request.run).probabilities(request.model, request.data.texts)
        charge = ledger.charge(
            request.message_id, request.run, "scores", Event.none(), len(request.data)
        )
        return feedback.of_labels(probabilities, request.data.labels), charge

    def _score_by_votes(self, request: Score, ledger: Ledger) -> tuple[list[float], Charge]:
        """Each unit votes on its own; the noise is planned over all rounds of the run together, on
        top of the whole ledger."""
        left = self._rounds_left(request)
        event = self._paid_or_planned(
            ledger,
            request.message_id,
            request.run,
            "gaussian-votes",
            lambda: self._planned(request, ledger, 1, request.rounds, left),
        )
        classes, labels, vectors = (
            len(self.task.labels),
            np.array(request.data.labels),
            self._embed(request.data.texts),
        )
        own, own_labels = self._embedded_records
        view = feedback.View.of(vectors)
        texts = view.directions(vectors)
        total = feedback.vote_sum(
            view.directions(own), own_labels, texts, labels, classes, self._owners
        )
        charge, once = self._charge(
            ledger, request, "gaussian-votes", event, len(labels), rounds=left
        )
        noisy = feedback.noisy_votes(
            total,
            event.noise_multiplier,
            self._randomness(once, "votes", ledger.path.stem, request.round),
        )
        scores = feedback.opinions(
            noisy, texts, labels, classes, event.noise_multiplier, self._units
        )
        return feedback.as_scores(scores), charge

    def _planned(
        self, request: Score, ledger: Ledger, sums: int, rounds: int = 1, left: int = 1
    ) -> Event:
        """One of `left` more releases of `sums` noisy sums each, with all that the run has left;
        `rounds` of them must be worth asking."""
        event = Event.gaussian(ledger.plan(request.epsilon, request.run, 1.0, sums, left), sums)
        alone = compose([event] * rounds, ledger.delta)
        if alone < feedback.LEAST_PART * request.epsilon:
            found = (
                f"run {request.run}: epsilon {alone:.2g} of {request.epsilon:g} is left for scores,"
                " the rest is spent already"
            )
            raise BudgetError(
                f"{found}; allowed: at least {feedback.LEAST_PART:.0%} of it, since with less they"
                " are noise alone"
            )
        return event

    def _score_by_scorer(self, request: Score, ledger: Ledger) -> tuple[list[float], Charge]:
        """The run's private scorer, trained and charged at the first request with the whole budget
        that the run has for scores."""
        name = f"{request.run}/scorer"
        file = self.config.folder / "scorers" / ledger.path.stem / f"{request.run}.npz"
        vectors = self._embed(request.data.texts)
        if file.is_file():
            bind(ledger.path, name, hashlib.sha256(file.read_bytes()).hexdigest())
            charge = ledger.find(name)
            if charge is None:
                raise LedgerError(f"{name}: a scorer is kept that the ledger has no charge for")
        else:
            event = self._paid_or_planned(
                ledger,
                name,
                request.run,
                "dp-scorer",
                lambda: self._planned(request, ledger, feedback.STEPS),
            )
            charge, once = self._charge(ledger, request, "dp-scorer", event, 1, id=name)
            own, labels = self._embedded_records
            sigma, steps, randomness = (
                event.noise_multiplier,
                event.count,
                self._randomness(once, "scorer", ledger.path.stem),
            )
            mechanism = (feedback.View.of(vectors), len(self.task.labels), sigma, steps, randomness)
            scorer = feedback.train_scorer(own, labels, self._owners, *mechanism)
            # of two trained at once, the first
            kept = write_once(file, scorer.to_bytes())
            bind(ledger.path, name, hashlib.sha256(kept).hexdigest())
            Once.forget(self.config.folder / "coins", name)
        scorer = feedback.Scorer.from_bytes(file.read_bytes())
        # further scores are post-processing of it; meanwhile the ledger may have grown
        charge = replace(
            charge, epsilon_total=ledger.spent(), epsilon_fixed=ledger.spent_if_fixed()
        )
        return feedback.of_labels(scorer.probabilities(vectors), request.data.labels), charge

    @cached_property
    def _embedded_records(self) -> tuple[np.ndarray, np.ndarray]:
        train = self._records.train
        return self._embed([record.text for record in train], private=True), np.array(
            [record.label for record in train]
        )

    def _embed(self, texts: Sequence[str], private: bool = False) -> np.ndarray:
        return feedback.embed(texts, self.config.scorer_embedding, self.config.slm, private)

    def _slm(self, run: str, folder: Path | None = None) -> SLM:
        config = self.config
        sites = len(self.task.clients) if config.pooled else 1
        kept = (folder or config.folder) / "models" / run
        careful = not config.repeatable or config.policy.share_metrics == "private"
        return SLM(
            config.slm, len(self.task.labels), kept, config.client, sites, careful, self.domain
        )

    def _terms_of_weights(self) -> tuple[rules.Policy, str]:
        """Policy and ledger for weights: the site's own, or, for a simulation's baselines, the open
        ones of what would have left."""
        if not self.config.counterfactual_baselines:
            return self.config.policy, "ledger.jsonl"
        return (
            self.config.policy.model_copy(
                update={"share_weights": True, "allow_unprotected": True}
            ),
            "counterfactual.jsonl",
        )

    def _terms_of_scores(self, counterfactual: bool) -> tuple[rules.Policy, str]:
        """The same for scores: the open ones only where a simulation's baseline asks for more than
        the run itself does."""
        if not counterfactual:
            return self.config.policy, "ledger.jsonl"
        if not self.config.counterfactual_baselines:
            raise PolicyError(
                "scores for a baseline leave only in a simulation; allowed: the same request with"
                " counterfactual false"
            )
        return (
            self.config.policy.model_copy(
                update={"share_scores": "any", "allow_unprotected": True}
            ),
            "counterfactual.jsonl",
        )

    def _ledger(
        self, delta: float, policy: rules.Policy | None = None, name: str = "ledger.jsonl"
    ) -> Ledger:
        policy = policy or self.config.policy
        granted = rules.granted_openly(policy)
        kept = (policy.epsilon_total, delta, policy.allow_unprotected)
        return Ledger(self.config.folder / name, *kept, unprotected=granted, unit=policy.unit)

    def _mechanism(self, name: str, event: Event) -> str:
        if event.kind == "none":
            return "none"
        # whoever knows the seed can take the noise off
        return f"{name} with seeded noise" if self.config.seeded_noise else name

    def _randomness(self, once: Once, *names: str | int) -> NoiseSource:
        return (
            SeededNoise(self.config.seed, self.config.client, *names)
            if self.config.seeded_noise
            else once.noise()
        )

    # --- One release for one charge ---------------------------------------------------------------

    @property
    def _noise_is_open(self) -> bool:
        """Whether a real site draws from a seed: whoever knows it takes the noise off, so what
        leaves is not protected."""
        return self.config.seeded_noise and not self.config.simulated

    def _rounds_left(self, request: Synthesize | Score | Evaluate) -> int:
        """Of the plan that begins with this request."""
        return request.rounds - (0 if self._noise_is_open else request.round)

    def _paid_or_planned(
        self, ledger: Ledger, id: str, run: str, what: str, plan: Callable[[], Event]
    ) -> Event:
        """The event that `id` was charged for (before a crash, or by a twin of the message while
        this one plans), or that a plan of the run paid for ahead; else what `plan` says."""
        if self._noise_is_open:
            return plan()
        if (paid := ledger.find(id)) is None and (ahead := ledger.planned(run, what)) is not None:
            return ahead
        if paid is None:
            try:
                event = plan()
            except BudgetError:
                if (paid := ledger.find(id)) is None:
                    raise
            else:
                if (paid := ledger.find(id)) is None:
                    return event
        return paid.entry.event

    def _charge(
        self,
        ledger: Ledger,
        request: Synthesize | Score | Evaluate,
        what: str,
        event: Event,
        released: int,
        rounds: int = 1,
        id: str = "",
    ) -> tuple[Charge, Once]:
        """The charge of a mechanism that is about to run, and its coins."""
        id = id or request.message_id
        if self._noise_is_open:
            event, rounds = Event.none(), 1
        once = Once(self.config.folder / "coins", id, encode(request))
        return (
            ledger.charge(
                id,
                request.run,
                what,
                event,
                released,
                epsilon_run=request.epsilon,
                rounds=rounds,
                coins=once.coins,
            ),
            once,
        )

    def _earlier(self, request: Synthesize | Score, ledger_name: str = "ledger.jsonl") -> Any:
        """What left under this id before, if it still is what the ledger says; or None."""
        earlier = self._releases.find(request.message_id)
        if earlier is not None:
            digest = self._releases.digest(request.message_id)
            scorer = {f"{request.run}/scorer"} if isinstance(request, Score) else ()
            bind(self.config.folder / ledger_name, request.message_id, digest, scorer)
        return earlier

    def _kept(
        self,
        id: str,
        answer: Any,
        charge: Charge,
        ledger: Ledger,
        releases: Releases | None = None,
    ) -> Any:
        """The answer that may leave: it is on the disk, and the ledger names it."""
        releases = releases or self._releases
        kept = releases.keep(id, answer)
        bind(ledger.path, id, releases.digest(id), {charge.entry.id})
        Once.forget(self.config.folder / "coins", id)
        return kept
