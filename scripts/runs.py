"""Commands for runs that are there: list them, open a report, and say in what two runs differ."""

from __future__ import annotations

import argparse
import json
import math
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fedduet.conf.check import ConfigError
from fedduet.scripts.reporting.metrics import said
from fedduet.scripts.reporting.page import write_page
from fedduet.scripts.reporting.trackers import flat
from fedduet.strategies.run.metrics import headline
from fedduet.strategies.run.summary import told
from rich.console import Console
from rich.table import Table


def list_runs(argv: Sequence[str]) -> int:
    """`fedduet list [FOLDER]`: the runs in a folder, the newest last; jobs of sweeps too."""
    parser = argparse.ArgumentParser(prog="fedduet list", description=list_runs.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    folder = parser.parse_args(list(argv)).folder
    configs = [*folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")]
    if not configs:
        raise ConfigError(f"{folder} has no runs; give the folder that holds run folders")
    table = Table(box=None)
    for head in ("run", "state", "accuracy", "epsilon", "seconds"):
        table.add_column(
            head, overflow="fold", justify="left" if head in ("run", "state") else "right"
        )
    for file in sorted(configs, key=lambda one: one.stat().st_mtime):
        table.add_row(str(file.parent), *_line(file.parent))
    Console().print(table)
    return 0


def _line(run: Path) -> tuple[str, str, str, str]:
    """State, headline of the strategy's own model, most epsilon spent, seconds."""
    if not (run / "summary.json").is_file():
        return "unfinished", "", "", ""
    summary = _summary(run)
    model, spent = told(summary)["final"], list(summary["epsilon"].values())
    found = summary["accuracy"].get(model)
    accuracy = "" if found is None else f"{model} {found:.3f}"
    if found is not None and said(summary) != "accuracy":
        accuracy += f" {said(summary)}"
    return summary["status"], accuracy, _epsilon(spent), f"{summary['seconds']['total']:.0f}"


def _epsilon(spent: Sequence[float]) -> str:
    if not spent:
        return "-"
    return "none" if math.isinf(max(spent)) else f"{max(spent):.2f}"


def open_report(argv: Sequence[str]) -> int:
    """`fedduet open RUN`: the report of a run, or the page of a sweep, in the browser; 1 where
    there is none."""
    parser = argparse.ArgumentParser(prog="fedduet open", description=open_report.__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run, or of a sweep")
    run = parser.parse_args(list(argv)).run
    page = run / "sweep.html" if (run / "sweep.json").is_file() else run / "report.html"
    if not page.is_file():
        if page.name == "sweep.html":
            raise ConfigError(f"{run} has no page yet; make it: fedduet sweep-report {run}")
        page = write_page(run)
    print(page.resolve().as_uri())
    return int(not webbrowser.open(page.resolve().as_uri()))


def diff(argv: Sequence[str]) -> int:
    """`fedduet diff RUN RUN`: settings in which two runs differ, then their figures."""
    parser = argparse.ArgumentParser(prog="fedduet diff", description=diff.__doc__)
    parser.add_argument("runs", type=Path, nargs=2, metavar="RUN")
    one, other = parser.parse_args(list(argv)).runs
    settings = [dict(flat(_config(run))) for run in (one, other)]
    console = Console()
    differing = [
        key
        for key in dict.fromkeys((*settings[0], *settings[1]))
        if len({str(s.get(key)) for s in settings}) > 1
    ]
    if differing:
        table = Table("setting", one.name, other.name)
        for key in differing:
            table.add_row(key, *(str(values.get(key, "-")) for values in settings))
        console.print(table)
    else:
        console.print("no setting differs")
    summaries = [_summary(run) for run in (one, other)]
    table = Table("figure", one.name, other.name, "difference")
    for name, values in _figures(summaries):
        known = [value for value in values if value is not None and math.isfinite(value)]
        change = f"{values[1] - values[0]:+.4g}" if len(known) == 2 else ""
        table.add_row(name, *("-" if v is None else f"{v:.4g}" for v in values), change)
    console.print(table)
    return 0


def _figures(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float | None]]]:
    """Name and both runs' values; None: one run has no such figure."""
    models = dict.fromkeys(model for summary in summaries for model in summary["accuracy"])
    found = [
        (
            f"{said(summaries[0])} of {model}",
            [summary["accuracy"].get(model) for summary in summaries],
        )
        for model in models
    ]
    found.append(("epsilon", [max(s["epsilon"].values(), default=None) for s in summaries]))
    found.append(("seconds", [s["seconds"]["total"] for s in summaries]))
    for key in ("prompt_tokens", "new_tokens"):
        found.append((f"LLM's {key.replace('_', ' ')}", [s["llm"].get(key) for s in summaries]))
    found += [
        (f"{key} of the wire", [s["wire"][key] for s in summaries])
        for key in ("up_bytes", "down_bytes")
    ]
    return found


def _config(run: Path) -> dict[str, Any]:
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} has no config.yaml; give a run folder (fedduet list names them)")
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def _summary(run: Path) -> dict[str, Any]:
    if not (run / "summary.json").is_file():
        raise ConfigError(f"{run} has no summary.json; give the folder of a finished run")
    return headline(json.loads((run / "summary.json").read_text(encoding="utf-8")))
