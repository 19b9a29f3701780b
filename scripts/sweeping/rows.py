"""`fedduet sweep-report DIR`: all jobs of a sweep as one table, and as one page with plots; what
failed or is missing is named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting.answer import interval
from fedduet.scripts.sweeping.plan import read_plan, state
from fedduet.strategies.run.metrics import headline
from fedduet.strategies.run.summary import ordered, spends, told

SEED = "seed"
# what is swept but the seed: (key, value), in the sweep's order
Setting = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """One job; `summary` is empty unless it completed."""

    name: str
    setting: Setting
    seed: str
    state: str
    why: str
    summary: Mapping[str, Any]

    @property
    def base(self) -> str:
        """What differences are taken to: the private model alone."""
        return told(self.summary)["base"]


@dataclass(frozen=True)
class Row:
    """One method under one setting, over seeds. `values`: the mean over sites of each run; `minus`:
    the same minus the private model's."""

    setting: Setting
    method: str
    values: tuple[float, ...]
    minus: tuple[float, ...]
    epsilon: float  # the most that a site spent; nan: nothing was released


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of the sweep in `folder`. Raises ConfigError where there is no sweep."""
    plan = read_plan(folder)
    if not plan["jobs"]:
        raise ConfigError(
            f"{folder} has no sweep.json; give the folder that fedduet -m printed (several single"
            " runs: fedduet report RUN...)"
        )
    jobs = []
    for name, overrides in plan["jobs"].items():
        values = dict(override.split("=", 1) for override in overrides)
        setting = tuple((key, values.get(key, "-")) for key in plan["swept"] if key != SEED)
        now, why = state(folder / name)
        summary = (
            headline(json.loads((folder / name / "summary.json").read_text(encoding="utf-8")))
            if now == "completed"
            else {}
        )
        jobs.append(Job(name, setting, values.get(SEED, "0"), now, why, summary))
    return jobs


def rows(jobs: Sequence[Job]) -> list[Row]:
    """One row for each setting and method that was measured, in the sweep's order."""
    found = []
    for setting in dict.fromkeys(job.setting for job in jobs if job.summary):
        of = [job for job in jobs if job.setting == setting and job.summary]
        models = dict.fromkeys(model for job in of for model in job.summary["accuracy"])
        for model in ordered(models, of[0].summary):
            measured = [
                (job.summary["accuracy"], job.base)
                for job in of
                if model in job.summary["accuracy"]
            ]
            minus = tuple(
                accuracy[model] - accuracy[base]
                for accuracy, base in measured
                if base in accuracy and base != model
            )
            spent = [
                value
                for job in of
                if spends(model, job.summary)
                for value in job.summary["epsilon"].values()
            ]
            found.append(
                Row(
                    setting,
                    model,
                    tuple(accuracy[model] for accuracy, _ in measured),
                    minus,
                    max(spent, default=math.nan),
                )
            )
    return found


def table(found: Sequence[Row]) -> list[list[str]]:
    """Head and rows as text. Accuracy is the mean over seeds (of means over sites), with a 95 %
    Student t interval over seeds; differences to the private model alone are paired by seed."""
    keys = [key for key, _ in found[0].setting] if found else []
    head = [
        *keys,
        "method",
        "accuracy [95 % over seeds]",
        "minus the SLM alone, points [95 %]",
        "epsilon spent",
        "runs",
    ]
    lines = []
    for row in found:
        spent = (
            "-"
            if math.isnan(row.epsilon)
            else "no guarantee"
            if math.isinf(row.epsilon)
            else f"{row.epsilon:.2f}"
        )
        minus = _spread([100 * value for value in row.minus], "+.1f")
        lines.append(
            [
                *(value for _, value in row.setting),
                row.method,
                _spread(row.values, ".3f"),
                minus,
                spent,
                str(len(row.values)),
            ]
        )
    return [head, *lines]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    mean, half = interval(list(values))
    return format(mean, form) + (
        "" if math.isnan(half) else f" [{mean - half:{form}}, {mean + half:{form}}]"
    )


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))
