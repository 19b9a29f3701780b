"""The cloud's part of CrossLM: the LLM writes, is tuned by scores and on accepted texts, and is
measured; adapters on disk, by phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from fedduet.lm.progress import report
from fedduet.lm.randomness import derive
from fedduet.lm.training.config import TuneReport
from fedduet.server.cloud import LLMCloud
from fedduet.server.llm.base import LLM, Progress, Rated, Tunes
from fedduet.server.measuring.general import fell, load_general, measure_general
from fedduet.server.measuring.simulated import simulated_splits
from fedduet.server.measuring.task_accuracy import llm_accuracy, task_examples
from fedduet.server.strategy import TunerSettings
from fedduet.server.writing.write import write
from fedduet.strategies.run.cloud import Outcome
from fedduet.strategies.run.run_folder import RunFolder
from fedduet.strategies.run.texts import Rewards, Texts
from fedduet.tasks.builtin.world import domain_of, oracle_label
from fedduet.tasks.config import TaskConfig
from fedduet.tasks.task import Split, Task
from fedduet.wire.messages import LabelledTexts

STOP_REASONS = {  # of a tuning that changed nothing
    "no_signal": "the scores do not tell the texts of any label apart, so the LLM stays as it was",
    "kl": "the LLM went further from its base than the limit allows, so this tuning was undone",
}


class LLMTuner:
    """Works on the LLM that `cloud` holds. `splits`, in a simulation only: how the LLM is measured,
    and its pooled upper bound."""

    def __init__(
        self,
        run: RunFolder,
        task: Task,
        cloud: LLMCloud,
        settings: TunerSettings,
        task_config: TaskConfig,
        federation: str,
        seed: int,
    ) -> None:
        self._run, self._task, self._cloud, self._settings = run, task, cloud, settings
        self._task_config, self._federation, self._seed = task_config, federation, seed
        self._general = load_general(settings.general, derive(seed, "general"))
        self._keep = self._general.replay if self._general else ()
        self._at: dict[str, str] = {}  # adapter -> where its weights are, in the run folder
        self._loaded: dict[str, str] = {}
        self._splits: Mapping[str, Split] | None = None
        self._before: Any = None  # general ability of the LLM as it came
        if self._general is None:
            run.event(
                "warning",
                message=(
                    "the LLM's general ability is not measured: strategy.general.texts names no"
                    " neutral text"
                ),
            )

    @property
    def tunes(self) -> bool:
        return isinstance(self._cloud.llm(), Tunes)

    # -- Writing ---------------------------------------------------------------

    def write(
        self, phase: str, demonstrations: Texts | None, adapter: str | None, per_label: int
    ) -> Texts:
        rows = self._run.once(
            f"{phase}-prompts", lambda: self._write(phase, demonstrations, adapter, per_label)
        )
        return {
            site: LabelledTexts([row["text"] for row in of], [row["label"] for row in of])
            for site, of in rows.items()
        }

    def _write(
        self, phase: str, demonstrations: Texts | None, adapter: str | None, per_label: int
    ) -> dict[str, list[dict[str, Any]]]:
        rows: dict[str, list[dict[str, Any]]] = {}
        counts = []
        with self._using(adapter) as llm:
            for site in sorted(self._task.domains):
                shown = (
                    self._cloud.as_demonstrations(site, demonstrations[site])
                    if demonstrations and site in demonstrations
                    else []
                )
                seed = derive(self._seed, phase, site)
                domain = self._task.domains[site]
                result = write(
                    self._task,
                    llm,
                    domain,
                    per_label,
                    shown,
                    self._settings.write,
                    seed,
                    _progress(f"{phase} {site}"),
                )
                self._cloud.count(phase, site, result.counts)
                counts.append(result.counts)
                rows[site] = [asdict(one) for one in result.texts]
        return self._cloud.something(phase, rows, counts)

    def agreement(self, texts: Texts) -> float | None:
        if self._task_config.source != "world":
            return None
        right = [
            oracle_label(text, domain_of(site)) == label
            for site, data in texts.items()
            for text, label in zip(data.texts, data.labels, strict=True)
        ]
        return round(sum(right) / len(right), 6) if right else None

    # -- Tuning ----------------------------------------------------------------

    def tune_generator(self, phase: str, adapter: str, written: str, rewards: Rewards) -> Outcome:
        rows = self._run.kept(f"{written}-prompts")
        rated = [
            Rated(
                _prompt(row["prompt"]), _chosen(row), reward, f"{site} {row['label']}", row["ended"]
            )
            for site, of in sorted(rows.items())
            for row, reward in zip(of, rewards[site], strict=True)
        ]
        seed = derive(self._seed, phase)
        tuning = (self._settings.policy, seed, self._keep, _progress(phase))
        return self._tune(phase, adapter, lambda llm: llm.tune_policy(adapter, rated, *tuning))

    def tune_task(self, phase: str, adapter: str, texts: Texts) -> Outcome:
        def tune(llm: Any) -> TuneReport:
            examples = task_examples(self._task, llm, texts)
            return llm.tune_examples(
                adapter,
                examples,
                self._settings.examples,
                derive(self._seed, phase),
                self._keep,
                _progress(phase),
            )

        return self._tune(phase, adapter, tune, task=True)

    def tune_pooled(self, phase: str, adapter: str) -> Outcome:
        pooled = {
            site: LabelledTexts(
                [record.text for record in split.train], [record.label for record in split.train]
            )
            for site, split in self._simulated().items()
        }
        return self.tune_task(phase, adapter, pooled)

    def adopt(self, outcome: Outcome) -> None:
        if outcome["folder"]:
            self._at[outcome["adapter"]] = outcome["folder"]

    def _tune(
        self, phase: str, adapter: str, tune: Callable[[Any], TuneReport], task: bool = False
    ) -> Outcome:
        """Tune, measure, and undo what cost more general ability than allowed."""
        before = self._base_general()
        with self._using(adapter) as llm:
            if adapter not in self._at:
                llm.drop_adapter(adapter)  # what an undone tuning may have left
            report = tune(llm)
            folder, undone = "", ""
            if not report.stopped:
                llm.use(adapter)
                after = measure_general(llm, self._general) if self._general else None
                undone = fell(before, after, self._settings.general) if after else ""
                if not undone:
                    folder = f"adapters/{phase}"
                    llm.save_adapter(adapter, self._run.path / folder)
                    self._at[adapter] = self._loaded[adapter] = folder
            if not folder:
                self._loaded.pop(adapter, None)  # loaded anew when it is needed
        measured = self._measure(phase, adapter if adapter in self._at else None, accuracy=task)
        stopped, rolled_back = (
            STOP_REASONS.get(report.stopped, report.stopped),
            undone and f"undone: {undone}",
        )
        figures = {
            key: value if math.isfinite(value) else None
            for key, value in (("loss", report.loss), ("kl", report.kl))
        }
        return (
            {
                "adapter": adapter,
                "folder": folder,
                "steps": report.steps,
                "stopped": stopped,
                "rolled_back": rolled_back,
            }
            | figures
            | measured
        )

    # -- Measuring -------------------------------------------------------------

    def measure(self, phase: str, adapter: str | None) -> Outcome:
        return self._measure(phase, adapter, accuracy=True)

    def _measure(self, phase: str, adapter: str | None, accuracy: bool) -> dict[str, Any]:
        with self._using(adapter) as llm:
            general = (
                self._base_general()
                if adapter is None
                else measure_general(llm, self._general)
                if self._general
                else None
            )
            right: dict[str, float] = {}
            if accuracy and self._federation in ("inprocess", "simulation"):
                test = {site: split.test for site, split in self._simulated().items()}
                right = llm_accuracy(llm, self._task, test, _progress(f"{phase}, accuracy"))
        return {"general": asdict(general) if general else None, "accuracy": right}

    def _base_general(self) -> Any:
        """General ability of the LLM as it came, measured once in a process."""
        if self._before is None and self._general:
            with self._using(None) as llm:
                self._before = measure_general(llm, self._general)
        return self._before

    def _simulated(self) -> Mapping[str, Split]:
        if self._splits is None:
            self._splits = simulated_splits(
                self._task_config, self._federation, self._seed, self._settings.llm_test_rows
            )
        return self._splits

    # -- The LLM ---------------------------------------------------------------

    @contextmanager
    def _using(self, adapter: str | None) -> Iterator[Any]:
        """The LLM with the newest weights of `adapter`; afterwards as it was."""
        llm: LLM = self._cloud.llm()
        if not isinstance(llm, Tunes):
            yield llm
            return
        folder = self._at.get(adapter or "")
        if adapter and folder and self._loaded.get(adapter) != folder:
            llm.load_adapter(adapter, self._run.path / folder)
            self._loaded[adapter] = folder
        before = llm.adapter
        llm.use(adapter if folder else None)
        try:
            yield llm
        finally:
            llm.use(before)


def _prompt(value: Any) -> Any:
    """A prompt as read back from the checkpoint: a string, or turns."""
    from fedduet.server.llm.base import ChatTurn

    return value if isinstance(value, str) else tuple(ChatTurn(**turn) for turn in value)


def _chosen(row: Mapping[str, Any]) -> str:
    """What the LLM is rewarded for: all it said, or, where the rules cut an unfinished end, up to
    there."""
    said, text = row["completion"], row["text"]
    at = said.find(text)
    return said if row["ended"] or at < 0 else said[: at + len(text)]


def _progress(phase: str) -> Progress:
    return lambda done, total, tokens: report(phase, done, total, "rows", tokens=float(tokens))
