"""`fedduet data OVERRIDES...`: what a data set holds before anything is trained on it: rows by site
and label, lengths and what is cut at which limit, repeats, odd rows, and every bad row."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedduet.clients.vault.config import read_sites
from fedduet.conf.check import ConfigError
from fedduet.conf.sections import read_top
from fedduet.scripts.launching.lengths import token_counts
from fedduet.scripts.launching.words import check_words
from fedduet.scripts.reporting.data_card import bad_rows, remarks, tables
from fedduet.tasks.data.columns import columns_of, guess
from fedduet.tasks.data.profile import Profile, profile
from fedduet.tasks.data.questions import QuestionsConfig, check_task, load_questions
from rich.console import Console
from rich.table import Table

from fedduet import conf


def main(argv: Sequence[str]) -> int:
    """`fedduet data OVERRIDES...`: the overrides of a run; nothing is trained. 1 when a run of them
    would stop at the data, else 0."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: fedduet data OVERRIDES...\n\n{main.__doc__}")
        return 0 if argv else 2
    check_words(list(argv), ())
    config, console = conf.compose(list(argv)), Console()
    section = config["task"]
    if section.get("source") == "files" and not section.get("labels") and section.get("path"):
        return _describe_file(section, console)
    task = check_task(section)
    if isinstance(task, QuestionsConfig):
        return _questions(task, read_top(config).seed, console)
    part = read_sites(config)
    counts = token_counts(part.slm, part.generator, task)
    found = profile(task, part.seed, counts, part.generator.logical_batch)
    show(found, console)
    stops = bool(found.bad) and task.on_bad_row == "fail"
    if stops:
        console.print("A run stops at the first bad row; task.on_bad_row=drop leaves them out.")
    return int(stops or bool(found.problem))


def _describe_file(section: Mapping[str, Any], console: Console) -> int:
    """No labels are given yet: the columns that there are, and overrides to begin with."""
    if not isinstance(section["path"], str):
        raise ConfigError("task.labels: missing; give {raw value: wording}")
    file = Path(section["root"] or "") / section["path"]
    if file.is_dir():
        file = next((one for one in sorted(file.iterdir()) if one.is_file()), file)
    columns = columns_of(file)
    table = Table(title=f"columns of {file}")
    for head in ("column", "filled", "median words", "values"):
        table.add_column(head, overflow="fold")
    for one in columns:
        values = ", ".join(f"{value} ({count})" for value, count in one.values.items())
        table.add_row(one.name, f"{one.filled:,}", str(one.words), values or "many")
    console.print(table)
    said = guess(columns)
    by_name = {one.name: one for one in columns}
    words = ["fedduet", "data", "task=files", f"task.path={section['path']}"]
    words += [f"task.text_column={said['text']}"] * bool(said["text"])
    if said["label"]:
        counts = by_name[said["label"]].values
        usual = [value for value in counts if counts[value] >= 0.01 * sum(counts.values())]
        labels = ", ".join(f"{value}: {_word(value)}" for value in sorted(usual))
        words += [f"task.label_column={said['label']}", f"task.labels={{{labels}}}"]
    words += [f"task.client_column={said['client']}" if said["client"] else "task.clients=4"]
    console.print("A guess to check, with your own words for the labels:")
    console.print("  " + shlex.join(words), highlight=False, soft_wrap=True)
    return 0


def _word(value: str) -> str:
    """A wording to begin with: a number has none of its own."""
    return f"label {value}" if value.lstrip("+-").replace(".", "").isdigit() else value.casefold()


def _questions(task: QuestionsConfig, seed: int, console: Console) -> int:
    table = Table(
        "site", "training questions", "validation", "test questions", title=f"data of {task.name}"
    )
    for site in task.names:
        split = load_questions(task, site, seed)
        table.add_row(site, str(len(split.train)), str(len(split.validation)), str(len(split.test)))
    console.print(table)
    return 0


def show(found: Profile, console: Console) -> None:
    """A profile on the terminal."""
    for title, lines in tables(found.to_dict()):
        table = Table(title=title, title_justify="left")
        for place, head in enumerate(lines[0]):
            table.add_column(head, justify="right" if place else "left", no_wrap=not place)
        for line in lines[1:]:
            table.add_row(*line)
        console.print(table)
    for line in remarks(found.to_dict()):
        console.print(f"- {line}", highlight=False, soft_wrap=True, markup=False)
    for what, file, count, lines in bad_rows(found.to_dict())[1:]:
        console.print(f"[red]bad[/], {count}:", end=" ", highlight=False)
        console.print(
            f"{what}\n    {file}: line {lines}", highlight=False, soft_wrap=True, markup=False
        )
    if found.problem:
        console.print("[red]a run would stop:[/]", end=" ")
        console.print(found.problem, highlight=False, soft_wrap=True, markup=False)
