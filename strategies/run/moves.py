"""The moves every strategy is made of: ask for demonstrations, let the cloud write, teach the
sites, measure.

Each move is a phase of the run folder: done once, kept, and read back when the run is started
again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedduet.strategies.run.cloud import Cloud, Tuner
from fedduet.strategies.run.run_folder import RunFolder
from fedduet.strategies.run.sites import Sites, TooFewSites
from fedduet.strategies.run.texts import Texts, concatenate, first_of_label
from fedduet.strategies.scores import problem
from fedduet.wire.codec import Arrays, decode
from fedduet.wire.messages import (
    Answer,
    Answered,
    Detail,
    Evaluate,
    Evaluated,
    LabelledTexts,
    Learn,
    Learned,
    Receipt,
    Score,
    Scored,
    Synthesize,
    Synthesized,
)


@dataclass(kw_only=True)
class Moves:
    """One run's moves, and what they measured so far (`accuracy[model][site]`,
    `receipts[site]`)."""

    run: RunFolder
    sites: Sites
    cloud: Cloud | None  # None: the strategy does not ask the cloud to write
    epsilon: float
    delta: float | None
    seed: int
    tuner: Tuner | None = None  # None: the strategy does not tune the cloud's LLM
    feedback: str = "none"  # how scores are protected
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    # counts behind the accuracy, of simulated sites: [model][site]
    details: dict[str, dict[str, Detail]] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    # demonstrations as the sites released them, by phase
    released: dict[str, Texts] = field(default_factory=dict)
    # [model][site]: what was said of its trainings, one for each round of averaging
    trainings: dict[str, dict[str, list[Learned]]] = field(default_factory=dict)
    # labelled text of no site, that the server may have; None: the task names none
    public: Callable[[], LabelledTexts | None] = lambda: None
    # the LLM's own accuracy by site, which only a simulation can measure; {}: not here
    classify: Callable[[], Mapping[str, float]] = dict
    # what a strategy adds to summary.json, under keys of its own
    findings: dict[str, Any] = field(default_factory=dict)
    _artefacts: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict, repr=False)

    def synthesize(self, round: int, rounds: int, per_label: int, extra: int = 0) -> Texts:
        """Every site writes DP demonstrations, `per_label` and up to `extra` more where these cost
        no privacy; its receipt is kept. A site that refuses is left out. All of them are in
        `released`; returned are `per_label`."""
        phase = f"synthesize-{round}"

        def request(site: str) -> Synthesize:
            return Synthesize(
                self.message_id(phase, site),
                self.sites.run_id,
                round,
                rounds,
                per_label,
                self.epsilon,
                self.delta,
                seed=self.seed,
                extra=extra,
            )

        answers = self.remember(
            phase, Synthesized, lambda: _messages(self.sites.ask(phase, request))
        )
        self.receipts |= {site: answer.receipt for site, answer in answers.items()}
        texts = {site: answer.data for site, answer in answers.items()}
        self.released[phase] = texts
        self.artefact("demonstrations", phase, texts)
        return first_of_label(texts, per_label)

    def score(
        self,
        phase: str,
        model: str,
        texts: Texts,
        *,
        round: int,
        rounds: int,
        counterfactual: bool = False,
    ) -> dict[str, Scored]:
        """Every site scores all texts by its SLM `model`, in the order of `texts`' sorted sites;
        its receipt is kept. The budget is planned over all `rounds` together.

        Sites whose scores cannot be right are left out and named. Raises TooFewSites when none is
        left. `counterfactual`: for a baseline beside the run, charged to a ledger of its own.
        """
        everything = concatenate([data for _, data in sorted(texts.items())])
        asked = LabelledTexts(everything.texts, everything.labels)

        def request(site: str) -> Score:
            return Score(
                self.message_id(phase, site),
                self.sites.run_id,
                model,
                asked,
                round=round,
                rounds=rounds,
                feedback=self.feedback,
                epsilon=self.epsilon,
                delta=self.delta,
                counterfactual=counterfactual,
            )

        answers = self.remember(phase, Scored, lambda: _messages(self.ask(phase, request)))
        good: dict[str, Scored] = {}
        for site, answer in answers.items():
            if reason := problem(answer.scores, len(asked)):
                reason = f"left out of this round: {reason}"
                self.run.event("failure", phase=phase, client=site, kind="scores", reason=reason)
            else:
                good[site] = answer
        if not good:
            raise TooFewSites(
                f"{phase}: no site returned scores that can be used; see the failures above"
            )
        if not counterfactual:
            self.receipts |= {site: answer.receipt for site, answer in good.items()}
        return good

    @property
    def _writer(self) -> Cloud:
        if self.cloud is None:
            raise ValueError("this strategy's kind of task has no cloud that writes texts")
        return self.cloud

    def curate(self, round: int, demonstrations: Texts) -> Texts:
        """The cloud's selection of the demonstrations."""
        phase = f"curate-{round}"
        return self.remember(
            phase,
            LabelledTexts,
            lambda: self.on_llm(phase, lambda: self._writer.curate(phase, demonstrations)),
        )

    def augment(self, phase: str, demonstrations: Texts | None) -> Texts:
        """The LLM's data for every site."""
        data = self.remember(
            phase,
            LabelledTexts,
            lambda: self.on_llm(phase, lambda: self._writer.augment(phase, demonstrations)),
        )
        self.artefact("task_data", phase, data)
        return data

    def learn(
        self,
        model: str,
        data: Texts | None = None,
        *,
        weight: float = 1.0,
        order: str = "together",
        **options: Any,
    ) -> None:
        """Every site trains its SLM on its records and `data` and keeps it as `model`; then all are
        measured on their test split.

        `weight`: lambda of L = CE(own records) + lambda * CE(data); `order`: "together", or
        "generated_first". Other options are fields of the message `Learn`.
        """
        empty = LabelledTexts()

        def request(site: str) -> Learn:
            settings: dict[str, Any] = {"weight": weight, "order": order, "seed": self.seed}
            return Learn(
                self.message_id(f"learn-{model}", site),
                self.sites.run_id,
                model,
                (data or {}).get(site, empty),
                **(settings | options),
            )

        self.measure(model, only=self.teach(model, request))

    def teach(
        self,
        model: str,
        request: Callable[[str], Learn],
        only: Sequence[str] | None = None,
        arrays: Arrays | None = None,
    ) -> list[str]:
        """Send training requests and return the sites that trained."""
        phase = f"learn-{model}"
        answers = self.remember(
            phase, Learned, lambda: _messages(self.sites.ask(phase, request, only, arrays))
        )
        self.trained(model, answers)
        return sorted(answers)

    def trained(self, model: str, answers: Mapping[str, Learned]) -> None:
        """Note what sites said of a training, or of a part of one."""
        for site, answer in answers.items():
            self.trainings.setdefault(model, {}).setdefault(site, []).append(answer)

    def measure(self, model: str, only: Sequence[str] | None = None, scope: str = "own") -> None:
        """Test accuracy of `model`, by site, into `accuracy`."""
        phase = f"measure-{model}"

        def request(site: str) -> Evaluate:
            return Evaluate(self.message_id(phase, site), self.sites.run_id, model, scope)

        try:
            answers = self.remember(
                phase, Evaluated, lambda: _messages(self.sites.ask(phase, request, only))
            )
        except TooFewSites as few:
            if not few.by_policy:
                raise
            answers = {}  # the sites keep their counts to themselves; the refusals are noted
        counts = {
            name: (answer.correct[name], total)
            for answer in answers.values()
            for name, total in answer.total.items()
        }
        self.accuracy[model] = {
            name: correct / total for name, (correct, total) in counts.items() if total
        }
        self.details[model] = {
            name: answer.detail for name, answer in answers.items() if answer.detail is not None
        }
        self.run.event("accuracy", model=model, by_site=self.accuracy[model])

    def answer(
        self,
        name: str,
        *,
        model: str,
        method: str,
        search: Mapping[str, Any],
        samples: int = 1,
        questions: int | None = None,
    ) -> None:
        """Every site answers its first `questions` test questions (None: all) by a method, under
        the name `name`, drawing at most `samples` solutions of each; what a question took on the
        mean goes to the finding `answers`, shares right into `accuracy`."""
        phase = f"answer-{name}"

        def request(site: str) -> Answer:
            message_id = self.message_id(phase, site)
            return Answer(
                message_id,
                self.sites.run_id,
                model,
                method,
                dict(search),
                samples,
                questions,
                self.seed,
            )

        found = self.remember(phase, Answered, lambda: _messages(self.sites.ask(phase, request)))
        self.findings.setdefault("answers", {})[name] = answer_figures(found)
        self.accuracy[name] = {
            site: one.right / one.total for site, one in found.items() if one.total
        }
        self.run.event("accuracy", model=name, by_site=self.accuracy[name])

    def ask(
        self,
        phase: str,
        request: Callable[[str], Any],
        only: Sequence[str] | None = None,
        arrays: Arrays | None = None,
    ) -> dict[str, tuple[Any, Arrays]]:
        """Ask the sites something whose answer is not kept (weights, say)."""
        return self.sites.ask(phase, request, only, arrays)

    def attempt(self, name: str, baseline: Callable[[], None]) -> None:
        """Run a baseline; when too few sites take part it is left out and written down, and the run
        goes on."""
        try:
            baseline()
        except TooFewSites as failure:
            self.run.event("failure", phase=name, client="", kind="baseline", reason=str(failure))

    def message_id(self, phase: str, site: str) -> str:
        """The id under which a request is charged and answered once."""
        return f"{self.sites.run_id}/{phase}/{site}"

    def on_llm(self, phase: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, timed as a phase of the LLM."""
        with self.run.phase(phase, "llm"):
            return compute()

    def remember(
        self, phase: str, kind: type, compute: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Messages of one `kind` by site, computed at most once per run folder."""
        stored = self.run.once(
            phase, lambda: {site: asdict(message) for site, message in compute().items()}
        )
        return {
            site: decode(kind.__name__, json.dumps(value).encode())
            for site, value in stored.items()
        }

    def artefact(self, name: str, phase: str, texts: Texts) -> None:
        """Texts of a phase, as rows of the run folder's `name`.jsonl."""
        rows = [
            {"phase": phase, "client": site, "label": label, "text": text}
            for site, data in sorted(texts.items())
            for text, label in zip(data.texts, data.labels, strict=True)
        ]
        kept = self._artefacts.setdefault(name, {})
        kept[phase] = rows
        self.run.artefact(name, [row for part in kept.values() for row in part])


def _messages(answers: Mapping[str, tuple[Any, Arrays]]) -> dict[str, Any]:
    return {site: message for site, (message, _) in answers.items()}


def answer_figures(by_site: Mapping[str, Answered]) -> dict[str, float]:
    """The share of right answers over all sites, and what a question took on the mean."""
    counts = list(by_site.values())
    questions = max(1, sum(one.total for one in counts))
    each = (
        "llm_tokens",
        "slm_tokens",
        "reward_calls",
        "seconds",
        "requests",
        "degraded",
        "private_steps",
        "collaborative_steps",
    )
    return {
        "accuracy": sum(one.right for one in counts) / questions,
        **{key: sum(getattr(one, key) for one in counts) / questions for key in each},
        "questions": sum(one.total for one in counts),
        "unanswered": sum(one.unanswered for one in counts),
        "bad_rewards": sum(one.bad_rewards for one in counts),
    }


def gap_closed(accuracy: float, local: float, pooled: float) -> float | None:
    """(acc - acc_local) / (acc_pooled - acc_local); None when the pooled bound is not above local
    training."""
    gap = pooled - local
    return (accuracy - local) / gap if gap > 1e-9 and math.isfinite(gap) else None
