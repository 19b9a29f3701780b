"""What a strategy may ask of the server: an LLM that curates and writes, and one that is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fedduet.strategies.run.texts import Rewards, Texts

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
