"""`fedduet table RUN...`: several runs (seeds) of one setting as a Markdown table, and their
contrasts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting.answer import beside, sentence
from fedduet.scripts.reporting.metrics import said
from fedduet.scripts.reporting.statistics import (
    ONE_SEED,
    SIGN,
    by_seed,
    contrast,
    contrast_lines,
    gap_closed,
    over_seeds,
)
from fedduet.strategies.run.metrics import headline
from fedduet.strategies.run.summary import ordered, told


def read_summaries(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The summaries of completed runs. Raises ConfigError for a folder without one or a run that
    did not complete."""
    found = []
    for folder in folders:
        file = folder / "summary.json"
        if not file.is_file():
            raise ConfigError(f"{folder} has no summary.json; give folders of finished runs")
        summary = json.loads(file.read_text(encoding="utf-8"))
        if summary["status"] != "completed":
            raise ConfigError(
                f"{folder} ended as {summary['status']}; finish it with the same command and"
                f" run.folder={folder}"
            )
        found.append(headline(summary))
    return found


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Rows are methods, then the strategy's contrasts. Accuracy is the mean over seeds of means
    over sites; scripts/reporting/statistics.py says what intervals, p and verdicts mean."""
    models = list(dict.fromkeys(model for summary in summaries for model in summary["accuracy"]))
    base = told(summaries[0])["base"]
    head = ["method", f"mean {said(summaries[0])} [95 % over seeds]", f"minus {base}, points"]
    lines = [[*head, "gap closed", "steps", "passes: private, generated", "checkpoint"]]
    for model in ordered(models, summaries[0]):
        accuracy = over_seeds(list(by_seed(summaries, model).values()))
        against = contrast(summaries, model, base) if model != base else None
        gap = None if model in ("local", "pooled") else gap_closed(summaries, model)
        lines.append(
            [
                model,
                accuracy.said(".3f"),
                against.points.said("+.1f") if against else "",
                gap.said(".2f") if gap else "",
                *training_cells(summaries, model),
            ]
        )
    seeds = len({summary["seed"] for summary in summaries})
    notes = [SIGN, *([ONE_SEED] if seeds == 1 else [])]
    parts = [as_markdown(lines), as_markdown(contrast_lines(summaries)), " ".join(notes)]
    return "\n\n".join(parts)


def training_cells(summaries: Sequence[Mapping[str, Any]], model: str) -> list[str]:
    """Steps, passes and checkpoint of a method, means over runs; empty where nothing was
    trained."""
    found = [one["training"][model] for one in summaries if model in one.get("training", {})]
    if not found:
        return ["", "", ""]
    steps, private, generated = (
        float(np.mean([one[key] for one in found]))
        for key in ("steps", "private_passes", "generated_passes")
    )
    checkpoints = " or ".join(sorted({one["checkpoint"] for one in found}))
    return [f"{steps:.0f}", f"{private:.1f}, {generated:.1f}", checkpoints]


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body))


def main(argv: list[str]) -> int:
    """Print the table; 2 for folders that cannot be read."""
    parser = argparse.ArgumentParser(prog="fedduet table", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of finished runs of one setting, e.g. one for each seed",
    )
    summaries = read_summaries(parser.parse_args(argv).runs)
    print(f"{sentence(summaries)}. {beside(summaries)}\n")
    print(table(summaries))
    seconds = [summary["seconds"]["total"] for summary in summaries]
    epsilons = [value for summary in summaries for value in summary["epsilon"].values()]
    said = f"epsilon at most {max(epsilons):.2f}" if epsilons else "nothing released"
    said = said.replace("epsilon at most inf", "no formal guarantee")
    print(
        f"\n{len(summaries)} runs, {summaries[0]['clients']} sites; {said}; {min(seconds):.0f} to"
        f" {max(seconds):.0f} s each",
        file=sys.stdout,
    )
    return 0
