"""The cloud's part of a strategy: one LLM that curates demonstrations and writes labelled data, for
all sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from fedduet.conf.check import Waiting
from fedduet.lm.progress import report
from fedduet.lm.randomness import derive
from fedduet.server.llm.base import LLM, ChatTurn, Progress, Request
from fedduet.server.llm.config import LLMConfig
from fedduet.server.llm.load import load_llm
from fedduet.server.writing.augment import AugmentConfig, augment
from fedduet.server.writing.curate import CurateConfig, Curated, Demonstration, curate
from fedduet.strategies.run.run_folder import RunFolder
from fedduet.strategies.run.texts import Texts
from fedduet.tasks.builtin.standin import describe, resolve
from fedduet.tasks.task import Task
from fedduet.wire.messages import LabelledTexts

T = TypeVar("T", bound=Mapping[str, Any])  # what there is for each site
USAGE = {
    "requests": "requests",
    "errors": "failed",
    "prompt_tokens": "prompt_tokens",
    "new_tokens": "new_tokens",
}


class LLMCloud:
    """Loads the LLM when it is first needed, so that a resumed run whose LLM phases are done never
    loads it."""

    def __init__(
        self,
        run: RunFolder,
        task: Task,
        config: LLMConfig,
        curating: CurateConfig,
        augmenting: AugmentConfig,
        seed: int,
    ) -> None:
        self._run, self._task, self._seed = run, task, seed
        self._config = (
            config.model_copy(update={"path": resolve(config.path)}) if config.path else config
        )
        self._curate, self._augment = curating, augmenting
        self._llm: LLM | None = None
        self._described = {
            "engine": config.engine,
            "path": config.path or config.model or "",
            "description": describe(config.path or ""),
        }

    @property
    def description(self) -> dict[str, Any]:
        """Engine and model for the summary; says when the LLM is a stand-in."""
        return dict(self._described)

    def llm(self) -> LLM:
        """The engine, loaded at the first call."""
        if self._llm is None:
            self._llm = load_llm(self._config, self._run.path)
            said = self._described["description"] or self._llm.name
            size = (
                f", {self._llm.parameters / 1e6:.1f} M parameters" if self._llm.parameters else ""
            )
            self._described |= {
                "name": self._llm.name,
                "parameters": self._llm.parameters,
                "description": said + size,
            }
        return self._llm

    def curate(self, phase: str, demonstrations: Texts) -> Texts:
        """Group and judge all sites' demonstrations together; each site gets back its own that were
        kept."""
        pool = [
            one
            for site, data in sorted(demonstrations.items())
            for one in self.as_demonstrations(site, data)
        ]
        result: Curated = curate(
            pool,
            self._task,
            self.llm(),
            self._embed,
            self._curate,
            derive(self._seed, phase),
            self._progress(phase),
        )
        self._run.event("curated", phase=phase, counts=dict(result.counts))
        if result.counts.get("empty_labels"):
            self._warn(
                f"{phase}: {result.counts['empty_labels']} (domain, label) pairs have no"
                " demonstration"
            )
        return {
            site: LabelledTexts(
                [one.text for one in result.kept if one.client == site],
                [one.label for one in result.kept if one.client == site],
            )
            for site in demonstrations
        }

    def augment(self, phase: str, demonstrations: Texts | None) -> Texts:
        """New labelled texts for every site's domain, after its demonstrations or (None) without
        any."""
        data: Texts = {}
        counts = []
        sites = sorted(self._task.domains) if demonstrations is None else sorted(demonstrations)
        for site in sites:
            shown = (
                [] if demonstrations is None else self.as_demonstrations(site, demonstrations[site])
            )
            # the zero-shot baseline and every round draw from streams of their own name
            seed = derive(self._seed, phase, site)
            result = augment(
                shown,
                self._task,
                self.llm(),
                self._task.domains[site],
                self._augment,
                seed,
                demonstrate=demonstrations is not None,
                on_progress=self._progress(f"{phase} {site}"),
            )
            self.count(phase, site, result.counts)
            counts.append(result.counts)
            soft = [list(item.soft_label) for item in result.items if item.soft_label is not None]
            data[site] = LabelledTexts(
                [item.text for item in result.items],
                [item.label for item in result.items],
                [item.weight for item in result.items],
                soft if len(soft) == len(result.items) else [],
            )
        return self.something(phase, data, counts)

    def check_answers(self) -> None:
        """Raises ConfigError for an LLM that cannot be loaded, and Waiting for one that does not
        answer a request of one token. A script answers what it has an answer to."""
        if self._config.engine == "scripted":
            return
        llm, said = self.llm(), "Say yes."
        asked = (ChatTurn("user", said),) if llm.form == "chat" else said
        (answer,) = llm.generate([Request(asked, max_new_tokens=1)])
        if answer.finish == "error":
            raise Waiting(f"the LLM does not answer: {answer.error}")

    def something(self, phase: str, texts: T, counts: Sequence[Mapping[str, int]]) -> T:
        """`texts`, if there are any or no request for them failed. Raises Waiting for a phase that
        got nothing from an LLM that did not answer: it must not be kept."""
        failed = sum(count.get(USAGE["errors"], 0) for count in counts)
        if failed and not any(map(len, texts.values())):
            raise Waiting(
                f"{phase}: the LLM gave no text, {failed} requests failed; what the sites released"
                " is kept, the same command goes on from here and pays nothing again"
            )
        return texts

    def close(self) -> None:
        """Release the engine."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def count(self, phase: str, site: str, counts: Mapping[str, int]) -> None:
        """Write what the LLM was asked and what became of its answers to the run."""
        self._run.event("augmented", phase=phase, client=site, counts=counts)
        usage = {key: counts.get(name, 0) for key, name in USAGE.items()}
        self._run.event("llm_usage", phase=phase, **usage)
        if not counts.get("kept"):
            self._warn(
                f"{phase}, {site}: no usable text came from the LLM, so its SLM gets none of its"
                " domain"
            )

    def as_demonstrations(self, site: str, data: LabelledTexts) -> list[Demonstration]:
        """A site's texts with its name and the wording of its domain."""
        domain = self._task.domains[site]
        return [
            Demonstration(text, label, domain, site)
            for text, label in zip(data.texts, data.labels, strict=True)
        ]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        from fedduet.lm.text.embed import hashed_embeddings

        return hashed_embeddings(texts)

    def _warn(self, message: str) -> None:
        self._run.event("warning", message=message)

    @staticmethod
    def _progress(phase: str) -> Progress:
        return lambda done, total, tokens: report(
            phase, done, total, "requests", tokens=float(tokens)
        )
