"""CrossLM's own moves: the LLM writes and is tuned, the sites score; each is a phase of the run
folder, done once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from fedduet.strategies.run.cloud import Outcome
from fedduet.strategies.run.moves import Moves
from fedduet.strategies.run.texts import Rewards, Texts
from fedduet.strategies.scores import accept, aggregate, no_opinion, split
from fedduet.wire.messages import LabelledTexts

if TYPE_CHECKING:
    from fedduet.strategies.crosslm import CrossLMConfig


class CrossLMMoves:
    """One CrossLM run over `moves`. What it measures of the LLM and of each round's texts goes to
    `moves.findings`: `llm_accuracy` (mean over sites) and `llm_general` by when they were measured,
    `curve` by round."""

    def __init__(self, moves: Moves, config: CrossLMConfig) -> None:
        if moves.tuner is None:
            raise TypeError("this strategy needs a server that tunes its LLM")
        self.moves, self._config, self._tuner = moves, config, moves.tuner
        self._scores: dict[str, Sequence[float]] = {}
        shared = config.adapters == "shared"
        self._generate, self._task = ("shared", "shared") if shared else ("generate", "task")
        self._used: str | None = None  # the adapter that writes; None until it was tuned
        self._rows: list[dict[str, Any]] = []
        self.curve: list[dict[str, Any]] = []
        self._accuracy: dict[str, float] = {}
        self._general: dict[str, Any] = {}

    @cached_property
    def tunes(self) -> bool:
        """Whether this run tunes the LLM: it can be, and `strategy.tuning` is not "none"."""
        wanted = self._config.tuning != "none"
        can = wanted and self.moves.run.once("llm-tunes", lambda: self._tuner.tunes)
        if wanted and not can:
            message = (
                "this LLM cannot be tuned: its best-rated texts become examples of the next round,"
                " its weights do not change"
            )
            self.moves.run.event("warning", message=message)
        return can

    def write(self, phase: str, demonstrations: Texts | None) -> Texts:
        """Step 2: texts of every label, as many for each site's domain, by the LLM as tuned so
        far."""
        return self._write(phase, demonstrations, self._used, self._config.per_label)

    def score(self, round: int, model: str, texts: Texts, baseline: bool = False) -> Rewards:
        """Step 3: every site scores all texts; rewards by aggregation. Sites whose scores cannot be
        right are left out and named."""
        moves, config = self.moves, self._config
        answers = moves.score(
            f"score-filtered-{round}" if baseline else f"score-{round}",
            model,
            texts,
            round=round,
            rounds=1 if baseline else config.rounds,
            counterfactual=baseline,
        )
        self._scores = {site: answer.scores for site, answer in answers.items()}
        rows = {site: answer.receipt.records for site, answer in answers.items()}
        return split(aggregate(self._scores, rows, config.aggregate), texts)

    def accept(self, texts: Texts, rewards: Rewards) -> tuple[Texts, list[str]]:
        """The texts that are worth learning from, and what labels had too few of them; see
        `fedduet.strategies.scores.accept`."""
        threshold = self._config.accept
        if threshold is None:
            threshold = no_opinion(texts, self.moves.feedback)
        return accept(texts, rewards, threshold, self._config.keep_at_least)

    def record(
        self, round: int, texts: Texts, rewards: Rewards, accepted: Texts, short: Sequence[str]
    ) -> None:
        """Write the round's texts, scores and rewards to the run folder and its figures to
        `curve`."""
        run, at = self.moves.run, 0
        rows: list[dict[str, Any]] = []
        for site, data in sorted(texts.items()):
            kept = set(accepted[site].texts)
            for place, (text, label) in enumerate(zip(data.texts, data.labels, strict=True)):
                scores = {scorer: round_to(values[at]) for scorer, values in self._scores.items()}
                reward = round_to(rewards[site][place])
                said = {"round": round, "client": site, "label": label, "reward": reward}
                rows.append(said | {"accepted": text in kept, "text": text, "scores": scores})
                at += 1
        self._rows += rows
        run.artefact("feedback", self._rows)
        for reason in short:
            run.event("warning", message=f"round {round}: {reason}")
        entry = {
            "round": round,
            "texts": len(rows),
            "accepted": sum(row["accepted"] for row in rows),
            "reward": round_to(sum(row["reward"] for row in rows) / max(1, len(rows))),
            "oracle_agreement": self._tuner.agreement(texts),
            "oracle_agreement_accepted": self._tuner.agreement(accepted),
        }
        self.curve.append(entry)
        run.event("round", **entry)

    def tune_generator(self, round: int, rewards: Rewards) -> None:
        """Step 4."""
        phase = f"tune-generator-{round}"
        outcome = self._tune(
            phase,
            lambda: self._tuner.tune_generator(phase, self._generate, f"write-{round}", rewards),
        )
        self._keep_measured("generator", outcome)
        if outcome["folder"]:
            self._used = self._generate

    def tune_task(self, round: int, data: Texts) -> None:
        """Step 5, on all texts accepted so far."""
        phase = f"tune-task-{round}"
        outcome = self._tune(phase, lambda: self._tuner.tune_task(phase, self._task, data))
        self._keep_measured("after", outcome)
        if outcome["folder"] and self._task == self._generate:
            self._used = self._generate

    def tune_unfiltered(self) -> None:
        """Baseline of the LLM: the task learnt on its own texts, as many as all rounds wrote,
        without any feedback."""
        if self.tunes:
            phase, texts = "tune-task-unfiltered", self.untuned_texts()
            self._keep_measured(
                "unfiltered",
                self._tune(phase, lambda: self._tuner.tune_task(phase, "unfiltered", texts)),
            )

    def tune_pooled(self) -> None:
        """Baseline of the LLM, upper bound: the task learnt on all sites' private records together.
        Only a simulation can do that."""
        if self.tunes:
            phase = "tune-task-pooled"
            self._keep_measured(
                "pooled", self._tune(phase, lambda: self._tuner.tune_pooled(phase, "pooled"))
            )

    def untuned_texts(self) -> Texts:
        """As many texts as all rounds wrote, by the LLM as it came."""
        return self._write(
            "write-untuned", None, None, self._config.per_label * self._config.rounds
        )

    def measure(self, name: str) -> None:
        """The LLM as it came."""
        phase = f"measure-llm-{name}"
        outcome = self.moves.run.once(
            phase, lambda: self.moves.on_llm(phase, lambda: self._tuner.measure(phase, None))
        )
        self._keep_measured(name, outcome)

    def _write(
        self, phase: str, demonstrations: Texts | None, adapter: str | None, per_label: int
    ) -> Texts:
        moves = self.moves
        texts = moves.remember(
            phase,
            LabelledTexts,
            lambda: moves.on_llm(
                phase, lambda: self._tuner.write(phase, demonstrations, adapter, per_label)
            ),
        )
        moves.artefact("task_data", phase, texts)
        return texts

    def _tune(self, phase: str, compute: Any) -> Outcome:
        outcome = self.moves.run.once(phase, lambda: self.moves.on_llm(phase, compute))
        self._tuner.adopt(outcome)
        self.moves.run.event(
            "tuned", **{key: value for key, value in outcome.items() if key != "accuracy"}
        )
        for reason in (outcome["stopped"], outcome["rolled_back"]):
            if reason:
                self.moves.run.event("warning", message=f"{phase}: {reason}")
        return outcome

    def _keep_measured(self, name: str, outcome: Outcome) -> None:
        """The LLM `before` and `after` the rounds (of the last one), its `generator` adapter, and
        the baselines."""
        right, general = outcome["accuracy"], outcome["general"]
        if right:
            self._accuracy[name] = float(np.mean(list(right.values())))
        if general:
            self._general[name] = general
        if name == "after" and right:
            self.curve[-1]["llm_accuracy"] = round_to(self._accuracy[name])
        self.moves.findings |= {
            "feedback": self.moves.feedback,
            "llm_accuracy": self._accuracy,
            "llm_general": self._general,
            "curve": self.curve,
        }


def round_to(value: float) -> float:
    """Six digits are enough for a file that people read."""
    return round(float(value), 6)
