"""The moves every strategy is made of: ask for demonstrations, let the cloud write, teach the
sites, measure.

Each move is a phase of the run folder: done once, kept, and read back when the run is started
again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from fedduet.strategies.run.run_folder import RunFolder
from fedduet.strategies.run.sites import Sites, TooFewSites
from fedduet.wire.codec import Arrays, decode
from fedduet.wire.messages import (
    Answer,
    Answered,
    Evaluate,
    Evaluated,
    LabelledTexts,
    Learn,
    Learned,
    Receipt,
    Synthesize,
    Synthesized,
)

Texts = dict[str, LabelledTexts]  # by site
# by the site whose domain the texts were written for, in their order
Rewards = Mapping[str, Sequence[float]]
Outcome = Mapping[str, Any]


class Cloud(Protocol):
    """What the server's LLM does for a strategy. Both return data by site and keep counts of what
    they dropped in the run folder."""

    def curate(self, phase: str, demonstrations: Texts) -> Texts:
        """Group and judge demonstrations (METHODS, FDKT step 3)."""
        ...

    def augment(self, phase: str, demonstrations: Texts | None) -> Texts:
        """Labelled data for every site's domain, after demonstrations or (None) from the domain's
        name alone (step 4)."""
        ...


class Tuner(Protocol):
    """The cloud's part of CrossLM. An outcome says what a tuning did: `steps`, `kl`, `stopped` (why
    it changed nothing), `rolled_back` (why the round was undone), `adapter` and `folder` (where its
    weights are), `general` and `accuracy` (measured after it)."""

    @property
    def tunes(self) -> bool:
        """Whether the engine's weights can be tuned."""
        ...

    def write(
        self, phase: str, demonstrations: Texts | None, adapter: str | None, per_label: int
    ) -> Texts:
        """Texts of every label for every site's domain."""
        ...

    def tune_generator(self, phase: str, adapter: str, written: str, rewards: Rewards) -> Outcome:
        """Make texts like the well-rated ones of the phase `written` likelier."""
        ...

    def tune_task(self, phase: str, adapter: str, texts: Texts) -> Outcome:
        """Learn V(x) -> y on labelled texts."""
        ...

    def tune_pooled(self, phase: str, adapter: str) -> Outcome:
        """Learn V(x) -> y on all sites' private records: an upper bound that only a simulation
        has."""
        ...

    def adopt(self, outcome: Outcome) -> None:
        """Go on with the weights that `outcome` names, also when an earlier start of the run made
        them."""
        ...

    def measure(self, phase: str, adapter: str | None) -> Outcome:
        """`general` ability and `accuracy` by site of the LLM with an adapter, or (None) as it
        came."""
        ...

    def agreement(self, texts: Texts) -> float | None:
        """Share of texts whose label is the task's own oracle's; None for a task without one."""
        ...


@dataclass
class Moves:
    """One run's moves, and what they measured so far (`accuracy[model][site]`,
    `receipts[site]`)."""

    run: RunFolder
    sites: Sites
    cloud: Cloud | None  # None: the strategy does not ask the cloud to write
    epsilon: float
    delta: float | None
    seed: int
    weight: float = 1.0
    order: str = "together"
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    tuner: Tuner | None = None
    feedback: str = "none"  # how scores are protected
    # CrossLM: general ability and accuracy of the LLM, by when it was measured
    llm: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)  # CrossLM: figures of each round
    # G-Boost: counts by method and site
    answers: dict[str, dict[str, Answered]] = field(default_factory=dict)
    _artefacts: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict, repr=False)

    def synthesize(self, round: int, rounds: int, per_label: int) -> Texts:
        """Every site writes DP demonstrations; its receipt is kept. A site that refuses is left
        out."""
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
            )

        answers = self.remember(
            phase, Synthesized, lambda: _messages(self.sites.ask(phase, request))
        )
        self.receipts |= {site: answer.receipt for site, answer in answers.items()}
        texts = {site: answer.data for site, answer in answers.items()}
        self.artefact("demonstrations", phase, texts)
        return texts

    def curate(self, round: int, demonstrations: Texts) -> Texts:
        """The cloud's selection of the demonstrations."""
        phase = f"curate-{round}"
        return self.remember(
            phase,
            LabelledTexts,
            lambda: self.on_llm(phase, lambda: self.cloud.curate(phase, demonstrations)),
        )

    def augment(self, phase: str, demonstrations: Texts | None) -> Texts:
        """The LLM's data for every site."""
        data = self.remember(
            phase,
            LabelledTexts,
            lambda: self.on_llm(phase, lambda: self.cloud.augment(phase, demonstrations)),
        )
        self.artefact("task_data", phase, data)
        return data

    def learn(self, model: str, data: Texts | None = None, **options: Any) -> None:
        """Every site trains its SLM on its records and `data` and keeps it as `model`; then all are
        measured on their test split."""
        empty = LabelledTexts()

        def request(site: str) -> Learn:
            settings = {"weight": self.weight, "order": self.order, "seed": self.seed} | options
            return Learn(
                self.message_id(f"learn-{model}", site),
                self.sites.run_id,
                model,
                (data or {}).get(site, empty),
                **settings,
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
        return sorted(
            self.remember(
                phase, Learned, lambda: _messages(self.sites.ask(phase, request, only, arrays))
            )
        )

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
        the name `name`, drawing at most `samples` solutions of each; counts into `answers`, shares
        right into `accuracy`."""
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
        self.answers[name] = found
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


def merge(*parts: Texts) -> Texts:
    """Data of several rounds, by site, in order."""
    sites = sorted({site for part in parts for site in part})
    return {site: concatenate([part[site] for part in parts if site in part]) for site in sites}


def concatenate(parts: Sequence[LabelledTexts]) -> LabelledTexts:
    """Several sets as one; weights and soft labels stay only when every non-empty part has them."""
    full = [part for part in parts if len(part)]
    return LabelledTexts(
        [text for part in full for text in part.texts],
        [label for part in full for label in part.labels],
        (
            [weight for part in full for weight in part.weights]
            if all(part.weights for part in full)
            else []
        ),
        (
            [row for part in full for row in part.soft_labels]
            if all(part.soft_labels for part in full)
            else []
        ),
    )


def shared_by_all(texts: Texts, domains: Mapping[str, str] | None = None) -> Texts:
    """Everybody's data for every site; with `domains` each text has its domain in front (METHODS,
    FDKT step 6: multi-task, how is our choice)."""
    everything = [
        (
            replace(data, texts=[f"{domains[site]}: {text}" for text in data.texts])
            if domains
            else data
        )
        for site, data in sorted(texts.items())
    ]
    return dict.fromkeys(texts, concatenate(everything))


def gap_closed(accuracy: float, local: float, pooled: float) -> float | None:
    """(acc - acc_local) / (acc_pooled - acc_local); None when the pooled bound is not above local
    training."""
    gap = pooled - local
    return (accuracy - local) / gap if gap > 1e-9 and math.isfinite(gap) else None
