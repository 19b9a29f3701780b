"""What a run answers, in a sentence: its method against the best baseline that gives nothing more
away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fedduet.scripts.reporting.statistics import differences
from fedduet.strategies.run.summary import told

BESIDE = ("zero_shot", "untuned")  # ends of phases in which the LLM writes for a baseline
Summaries = Sequence[Mapping[str, Any]]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % Student t interval; the half-width is nan for fewer than two
    values."""
    from scipy import stats  # a second's import, which pages that show no interval spare

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan

    return mean, float(
        stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    )


@dataclass(frozen=True)
class Difference:
    """Points of a method above another, a value for each seed (scripts/reporting/statistics.py says
    why): the mean, half of its 95 % interval (nan for one seed), and how many seeds."""

    mean: float
    half: float
    seeds: int

    def __str__(self) -> str:
        spread = "" if math.isnan(self.half) else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.mean:+.1f}{spread}"

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def by_chance(self) -> bool:
        """Whether the interval holds 0."""
        return not math.isnan(self.half) and abs(self.mean) <= self.half


def difference(summaries: Summaries, model: str, base: str) -> Difference | None:
    """Paired by seed, of means over sites that have both; None where nobody has both."""
    values = list(differences(summaries, model, base).values())
    return Difference(*interval(values), len(values)) if values else None


def best_rival(summaries: Summaries) -> str | None:
    """Of the methods that give nothing more away, the one with the highest mean over runs; None
    where none was measured."""
    means = {
        name: np.mean([one["accuracy"][name] for one in summaries if name in one["accuracy"]])
        for name in told(summaries[0])["rivals"]
        if any(name in one["accuracy"] for one in summaries)
    }
    return max(means, key=lambda name: means[name], default=None)


def wrote_nothing(summary: Mapping[str, Any]) -> bool:
    """Whether the LLM was asked to write for the method and no text of it could be used."""
    kept = [
        entry["counts"].get("kept", 0)
        for entry in summary.get("curated", [])
        if entry["event"] == "augmented" and not entry["phase"].endswith(BESIDE)
    ]
    return bool(kept) and not any(kept)


def sentence(summaries: Summaries) -> str:
    """The first sentence of reports and tables. A difference is always the method minus the
    other."""
    model, rival = told(summaries[0])["final"], best_rival(summaries)
    if any(wrote_nothing(summary) for summary in summaries):
        return "No result: the LLM wrote no text that could be used"
    privacy = guarantee(summaries)
    found = difference(summaries, model, rival) if rival else None
    if found is None:
        known = [one["accuracy"][model] for one in summaries if model in one["accuracy"]]
        return f"{model}: {np.mean(known):.3f}, {privacy}" if known else privacy.capitalize()
    verb = "gained" if found.mean >= 0 else "lost"
    chance = ", within chance" if found.by_chance else ""
    return (
        f"{model} {verb} {abs(found.mean):.1f} points against {rival} ({found}{chance}), {privacy}"
    )


def beside(summaries: Summaries) -> str:
    """What the sentence compared with, and the difference to the private model alone where that is
    another."""
    spec, rival = told(summaries[0]), best_rival(summaries)
    model, base, what = spec["final"], spec["base"], spec["columns"].get(rival, "")
    if rival is None or difference(summaries, model, rival) is None:
        return ""
    said = (
        f"{rival}{f' ({what})' if what else ''} is the best baseline that gives nothing more away."
    )
    found = difference(summaries, model, base)
    if found is None or base in (rival, model):
        return said
    verb = "gained" if found.mean >= 0 else "lost"
    return f"{said} Against {base} the method {verb} {abs(found.mean):.1f} points ({found})."


def guarantee(summaries: Summaries) -> str:
    """What the sites spent, for the end of a sentence."""
    spent = [value for summary in summaries for value in summary["epsilon"].values()]
    if not spent:
        asked = any(
            found["llm_tokens"]
            for summary in summaries
            for found in summary.get("answers", {}).values()
        )
        return (
            "while the LLM saw the questions, without a guarantee"
            if asked
            else "and nothing private was released"
        )
    return "with no formal guarantee" if math.isinf(max(spent)) else f"at epsilon {max(spent):.2g}"


def tiles(summaries: Summaries) -> list[tuple[str, str, str]]:
    """(what, figure, what it is next to) of a run at a glance."""
    summary, spec = summaries[0], told(summaries[0])
    model, rival = spec["final"], best_rival(summaries)
    made = []

    def mean(name: str) -> str:
        return f"{np.mean([s['accuracy'][name] for s in summaries if name in s['accuracy']]):.3f}"

    if any(model in one["accuracy"] for one in summaries):
        against = f"{rival}: {mean(rival)}" if rival else "nothing to compare with"
        made.append((f"{model}, mean over sites", mean(model), f"best baseline {against}"))
    spent = [value for one in summaries for value in one["epsilon"].values()]
    if spent:
        none = math.isinf(max(spent))
        limit = "no formal guarantee" if none else "the most of any site"
        made.append(("epsilon", "none" if none else f"{max(spent):.2f}", limit))
    else:
        made.append(("epsilon", "-", "nothing was released under a guarantee"))
    seconds = [one["seconds"]["total"] for one in summaries]
    sites = f"{summary['clients']} sites" + (f", {len(summaries)} runs" if summaries[1:] else "")
    made.append(("time of a run", _time(float(np.mean(seconds))), sites))
    used = [one["llm"].get("new_tokens", 0) for one in summaries]
    asked = [one["llm"].get("prompt_tokens", 0) for one in summaries]
    if any(used):
        made.append(("LLM tokens written", f"{np.mean(used):,.0f}", f"{np.mean(asked):,.0f} read"))
    return made


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
