"""What the rest of the house knows of a strategy: one object that its module exports as `SPEC`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic
from fedduet.conf.check import Section

GUIDED, TUNED = "guided", "tuned"
# of the registry of baselines
RIVALS = ("local", "dp_only", "zero_shot", "public", "llm_zero_shot")


class GuidedTexts(Section):
    """Keys of a strategy whose LLM curates demonstrations and writes after them. Both are the
    server's settings, and checked there."""

    curate: Mapping[str, Any] = {}
    """How the LLM judges demonstrations (server/writing/curate.py)."""
    augment: Mapping[str, Any] = {}
    """How the LLM writes after demonstrations (server/writing/augment.py)."""


class TunedLLM(Section):
    """Keys of a strategy that tunes the cloud's LLM. The mappings are the server's settings, and
    checked there."""

    tuning: Literal["policy_gradient", "dpo", "likelihood", "none"] = "policy_gradient"
    """The generator's objective; none: the LLM's weights stay, its best texts become examples."""
    llm_test_rows: int = pydantic.Field(200, ge=1)
    """Of each site's test texts, to measure the LLM in a simulation."""
    write: Mapping[str, Any] = {}
    """How the LLM writes texts to be scored (server/writing/write.py)."""
    policy: Mapping[str, Any] = {}
    """How the generator learns from scores (lm/training/config.py)."""
    examples: Mapping[str, Any] = {}
    """How the LLM learns the task from accepted texts (lm/training/config.py)."""
    general: Mapping[str, Any] = {}
    """The ability that tuning must not cost (server/measuring/general.py)."""


@dataclass(frozen=True)
class Needs:
    """What a strategy with these settings asks for. The names of parts of its section ("" is the
    section itself, "fdkt" its key `fdkt`) tell where complaints point.

    `guided`: the LLM curates and writes; `tuned`: the LLM is tuned; `methods`: by name, the method
    of the sites and the search by which questions are answered (clients/vault/answering).
    """

    guided: tuple[str, GuidedTexts] | None = None
    tuned: tuple[str, TunedLLM] | None = None
    methods: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


def needs_of_section(settings: Any) -> Needs:
    """What the section says by its class: that of `GuidedTexts`, of `TunedLLM`, of both, or
    nothing."""
    return Needs(
        ("", settings) if isinstance(settings, GuidedTexts) else None,
        ("", settings) if isinstance(settings, TunedLLM) else None,
    )


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A strategy: the only object by which launching, forecasts, reports and trackers know it.

    `columns` names the methods that its runs measure in the order of tables, each with what it is;
    `contrasts` are its primary comparisons (method, what it has to be better than), every other one
    is exploratory.
    """

    name: str  # in `strategy=...` and summary.json
    config: type[Section]  # of its section of the configuration
    run: Callable[[Any, Any], Any]  # (moves, settings); the algorithm
    task: Literal["classification", "reasoning"] = "classification"
    needs: Callable[[Any], Needs] = needs_of_section
    final: str  # the model, or the method of answering, that it ends with
    taught: tuple[str, ...] = ()  # models that it teaches itself; () is the final one alone
    base: str = "local"  # the method that reports compare with
    question: str  # that a report answers, as a sentence
    # methods that give nothing private away, or no more than this one: reports name the best first
    rivals: tuple[str, ...] = RIVALS
    contrasts: tuple[tuple[str, str], ...]
    columns: Mapping[str, str]

    def told(self) -> dict[str, Any]:
        """What a report needs, as plain values: it is kept in summary.json, so that reading a run
        needs no strategy's code."""
        return {
            "final": self.final,
            "taught": list(self.taught or (self.final,)),
            "base": self.base,
            "question": self.question,
            "rivals": list(self.rivals),
            "contrasts": [list(pair) for pair in self.contrasts],
            "columns": dict(self.columns),
        }
