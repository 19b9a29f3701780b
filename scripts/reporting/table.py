"""`fedduet table RUN...`: several runs (seeds) of one setting as one Markdown table with paired
differences."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting.answer import beside, interval, sentence
from fedduet.scripts.reporting.metrics import said
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
    """Rows are methods. Accuracy is the mean over sites and runs; differences to local training are
    paired by (run, site), with a 95 % Student t interval over those pairs; gap closed is (mean -
    local) / (pooled - local) of the means.
    """
    models = list(dict.fromkeys(model for summary in summaries for model in summary["accuracy"]))
    means = {
        model: float(np.mean([value for _, value in _values(summaries, model)])) for model in models
    }
    lines = [
        f"| method | mean {said(summaries[0])} | minus local, points [95 %] | gap closed |",
        "|---|---|---|---|",
    ]
    base = told(summaries[0])["base"]
    lines[0] = lines[0].replace("local", base)
    for model in ordered(models, summaries[0]):
        difference = ""
        if model != base and base in models:
            local = dict(_values(summaries, base))
            pairs = [
                100 * (value - local[key])
                for key, value in _values(summaries, model)
                if key in local
            ]
            mean, half = interval(pairs)
            difference = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
        gap = ""
        if (
            model not in ("local", "pooled")
            and {"local", "pooled"} <= set(models)
            and means["pooled"] > means["local"]
        ):
            gap = f"{(means[model] - means['local']) / (means['pooled'] - means['local']):.2f}"
        lines.append(f"| {model} | {means[model]:.3f} | {difference} | {gap} |")
    return "\n".join(lines)


def _values(
    summaries: Sequence[Mapping[str, Any]], model: str
) -> list[tuple[tuple[int, str], float]]:
    """((run number, site), accuracy) of one method."""
    return [
        ((number, site), accuracy[model])
        for number, summary in enumerate(summaries)
        for site, accuracy in summary["accuracy_per_client"].items()
        if model in accuracy
    ]


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
