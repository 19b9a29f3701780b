"""What a person sees: phases with progress while a run goes on, a table and samples when it has
ended."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fedduet.lm import progress as lm_progress
from fedduet.scripts.reporting import answer, metrics
from fedduet.scripts.reporting.answer import interval
from fedduet.scripts.reporting.texts import label_name, label_names
from fedduet.strategies.run.metrics import headline
from fedduet.strategies.run.summary import ordered, told
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Display:
    """A live progress display fed by a run's events and by long loops in `lm`; plain lines where
    there is no terminal."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.console = console or Console()
        self.folder = folder
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TextColumn(
                "{task.completed:.0f}/{task.total:.0f} {task.fields[unit]} {task.fields[note]}"
            ),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        self._phases: dict[str, Any] = {}
        self._inner: Any = None
        self._inner_name = ""

    def __enter__(self) -> Display:
        self.console.print(f"run folder: {self.folder}", highlight=False)
        self._progress.start()
        lm_progress.listen(self.step)
        return self

    def __exit__(self, *_: Any) -> None:
        lm_progress.listen(None)
        self._progress.stop()

    def event(self, entry: Mapping[str, Any]) -> None:
        """One event of the run folder."""
        kind, phase = entry["event"], entry.get("phase", "")
        if kind == "phase_start":
            self._phases[phase] = self._progress.add_task(
                phase, total=1, unit="LLM" if entry["side"] == "llm" else "sites", note=""
            )
        elif kind == "sent" and phase in self._phases:
            self._progress.update(self._phases[phase], total=len(entry["clients"]))
        elif kind == "answered" and phase in self._phases:
            self._progress.update(self._phases[phase], advance=1, note=f"last: {entry['client']}")
        elif kind == "phase_end":
            self._close(phase)
            self._print(f"[green]done[/] {phase:24s} {entry['seconds']:8.1f} s")
        elif kind == "phase_reused":
            self._print(f"[dim]kept {phase} from an earlier start[/]")
        elif kind == "failure":
            self._print(
                f"[red]left out[/] {entry['client'] or entry['phase']}: {entry['reason']}"
                f" [dim]({entry['phase']}, {entry['kind']})[/]"
            )
        elif kind == "warning":
            self._print(f"[yellow]warning[/] {entry['message']}")
        elif kind == "accuracy":
            mean = float(np.mean(list(entry["by_site"].values()))) if entry["by_site"] else math.nan
            self._print(f"     {entry['model']:24s} mean test accuracy {mean:.3f}")

    def step(self, progress: lm_progress.Progress) -> None:
        """One report of a long loop in this process."""
        figures = "  ".join(f"{name} {value:.3g}" for name, value in progress.figures.items())
        if progress.phase != self._inner_name or self._inner is None:
            if self._inner is not None:
                self._progress.remove_task(self._inner)
            self._inner = self._progress.add_task(
                f"  {progress.phase}", total=progress.total, unit=progress.unit, note=""
            )
            self._inner_name = progress.phase
        self._progress.update(
            self._inner, completed=progress.done, total=max(progress.total, 1), note=figures
        )
        if progress.done >= progress.total:
            self._progress.remove_task(self._inner)
            self._inner = None

    def _print(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def _close(self, phase: str) -> None:
        task = self._phases.pop(phase, None)
        if task is not None:
            self._progress.remove_task(task)
        if self._inner is not None:
            self._progress.remove_task(self._inner)
            self._inner = None


def print_outcome(summary: Mapping[str, Any], folder: Path, console: Console | None = None) -> None:
    """The table of a run: accuracy by method and site, what it cost, samples of what went up and
    came down."""
    console, summary = console or Console(), headline(summary)
    console.print(accuracy_table(summary))
    model = told(summary)["final"]
    console.print(f"[bold]{answer.sentence([summary])}.[/]", highlight=False)
    if beside_it := answer.beside([summary]):
        console.print(beside_it, highlight=False)
    if beside := metrics.line(summary, model):
        console.print(beside, highlight=False)
    if summary.get("answers"):
        console.print(answers_table(summary))
    if summary.get("curve"):
        console.print(curve_table(summary))
        console.print(llm_table(summary))
    _print_costs(summary, console)
    _print_samples(folder / "demonstrations.jsonl", "demonstrations (DP, up)", console)
    _print_samples(folder / "task_data.jsonl", "LLM-written data (down)", console)
    for failure in summary["failures"]:
        console.print(
            f"[red]failure[/] {failure['phase']} {failure['client']}: {failure['reason']}",
            highlight=False,
        )
    console.print(f"{summary['status']}; everything is in {folder}", highlight=False)


def accuracy_table(summary: Mapping[str, Any]) -> Table:
    """Method x site, mean and 95 % interval over sites."""
    by_site = summary["accuracy_per_client"]
    models = ordered(summary["accuracy"], summary)
    table = Table(
        title=(
            f"test {metrics.said(summary)}, {summary['task']}, seed {summary['seed']}; LLM:"
            f" {summary['llm'].get('description', '')}"
        )
    )
    table.add_column("method")
    for site in by_site:
        table.add_column(site, justify="right")
    table.add_column("mean [95 % over sites]", justify="right")
    for model in models:
        values = [accuracy[model] for accuracy in by_site.values() if model in accuracy]
        mean, half = interval(values)
        spread = (
            "" if math.isnan(half) else f" [{max(0, mean - half):.3f}, {min(1, mean + half):.3f}]"
        )
        cells = [
            f"{by_site[site][model]:.3f}" if model in by_site[site] else "-" for site in by_site
        ]
        table.add_row(
            model,
            *cells,
            f"{mean:.3f}{spread}",
            style="bold" if model == told(summary)["final"] else "",
        )
    return table


def answers_table(summary: Mapping[str, Any]) -> Table:
    """G-Boost and its baselines: how many answers are right, and what a question took."""
    table = Table(title="answers, and what one question took on the mean")
    columns = {
        "accuracy": ".3f",
        "llm_tokens": ".0f",
        "slm_tokens": ".0f",
        "reward_calls": ".1f",
        "requests": ".1f",
        "seconds": ".3f",
    }
    table.add_column("method")
    for name in columns:
        table.add_column(
            name.replace("llm", "LLM").replace("slm", "SLM").replace("_", " "), justify="right"
        )
    for method, found in summary["answers"].items():
        style = "bold" if method == told(summary)["final"] else ""
        table.add_row(
            method, *(format(found[name], form) for name, form in columns.items()), style=style
        )
    return table


def curve_table(summary: Mapping[str, Any]) -> Table:
    """CrossLM, round by round: what the LLM wrote and how the sites and (where there is one) an
    oracle rate it."""
    names = {
        "oracle_agreement": "oracle agrees",
        "oracle_agreement_accepted": "of the accepted",
        "reward": "mean reward",
    }
    names |= {"llm_accuracy": "LLM accuracy"}
    table = Table(title="rounds")
    for title in ("round", "texts", "accepted", *names.values()):
        table.add_column(title, justify="right")
    for entry in summary["curve"]:
        cells = ["-" if entry.get(key) is None else f"{entry[key]:.3f}" for key in names]
        table.add_row(str(entry["round"]), str(entry["texts"]), str(entry["accepted"]), *cells)
    return table


def llm_table(summary: Mapping[str, Any]) -> Table:
    """The LLM itself: accuracy on the sites' tests and general ability, as it came, after the
    rounds, and tuned in other ways."""
    table = Table(title=f"the LLM itself; scores: {summary['feedback']}")
    for title in ("LLM", "task accuracy", "perplexity of neutral text", "other tasks"):
        table.add_column(title, justify="left" if title == "LLM" else "right")
    for when in dict.fromkeys((*summary["llm_accuracy"], *summary["llm_general"])):
        accuracy, general = summary["llm_accuracy"].get(when), summary["llm_general"].get(when)
        figures = (
            [f"{general['perplexity']:.2f}", f"{general['accuracy']:.3f}"]
            if general
            else ["-", "-"]
        )
        table.add_row(when, "-" if accuracy is None else f"{accuracy:.3f}", *figures)
    return table


def _print_costs(summary: Mapping[str, Any], console: Console) -> None:
    said = [
        f"{site} " + (f"{value:.2f}" if math.isfinite(value) else "no formal guarantee")
        for site, value in summary["epsilon"].items()
    ]
    delta = ", ".join(f"{value:.1e}" for value in sorted(set(summary["delta"].values())))
    console.print(
        f"epsilon: {', '.join(said)} (delta {delta})" if said else "epsilon: nothing was released",
        highlight=False,
    )
    wire, llm, seconds = summary["wire"], summary["llm"], summary["seconds"]
    console.print(
        f"wire: {wire['up_bytes']:,} bytes up, {wire['down_bytes']:,} bytes down", highlight=False
    )
    console.print(
        f"LLM: {llm.get('prompt_tokens', 0):,} prompt tokens, {llm.get('new_tokens', 0):,} new"
        " tokens",
        highlight=False,
    )
    sides = ", ".join(
        f"{name} {seconds[name]:.1f} s" for name in ("llm", "clients", "orchestration")
    )
    console.print(f"time: {seconds['total']:.1f} s ({sides})", highlight=False)
    slow = sorted(seconds["phases"].items(), key=lambda item: -item[1])[:6]
    console.print(
        "slowest phases: " + ", ".join(f"{name} {value:.1f} s" for name, value in slow),
        highlight=False,
    )


def _print_samples(file: Path, title: str, console: Console, count: int = 3) -> None:
    if not file.exists():
        return
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if not rows:
        return
    config = file.with_name("config.yaml")
    labels = label_names(yaml.safe_load(config.read_text())) if config.is_file() else []
    console.print(f"[bold]{title}[/]")
    for row in rows[:: max(1, len(rows) // count)][:count]:
        console.print(
            f"  {row['client']}, {label_name(row, labels)}: {row['text'][:200]}",
            highlight=False,
            markup=False,
        )
