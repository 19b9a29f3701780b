"""A run from Python: `fedduet.run`, which does what the command does, and what it returns."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet import conf
from fedduet.conf.check import ConfigError, nearest
from fedduet.scripts.launching.environment import prepare

HUB = "hub:"  # what the name of a data set of the hub starts with


@dataclass(frozen=True)
class Result:
    """A run that completed: where it is kept, and its summary.json."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def accuracy(self) -> dict[str, float]:
        """Method -> mean test accuracy over the sites."""
        return dict(self.summary["accuracy"])

    @property
    def epsilon(self) -> dict[str, float]:
        """Site -> the epsilon of what it released in this run."""
        return dict(self.summary["epsilon"])

    @property
    def texts(self) -> list[dict[str, Any]]:
        """What the LLM wrote for the sites, a row each (task_data.jsonl); none where the strategy
        has no such texts."""
        from fedduet.scripts.reporting.html import rows_of

        return rows_of(self.folder / "task_data.jsonl")

    def table(self, width: int = 120) -> str:
        """What the terminal prints at the end of the run, in lines of `width` characters."""
        import io

        from rich.console import Console

        from fedduet.scripts.reporting.terminal import print_outcome

        console = Console(file=io.StringIO(), width=width)
        print_outcome(self.summary, self.folder, console)
        return console.file.getvalue()

    def report(self) -> Path:
        """The run's page, which needs no network."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        from html import escape

        from fedduet.scripts.reporting.answer import sentence
        from fedduet.scripts.reporting.html import table
        from fedduet.strategies.run.metrics import headline
        from fedduet.strategies.run.summary import ordered

        summary = headline(self.summary)
        sites = summary["accuracy_per_client"]
        rows = [
            (
                model,
                *(f"{site[model]:.3f}" if model in site else "-" for site in sites.values()),
                f"{summary['accuracy'][model]:.3f}",
            )
            for model in ordered(summary["accuracy"], summary)
        ]
        return (
            f"<p><strong>{escape(sentence([summary]))}.</strong></p>"
            f"{table([('method', *sites, 'mean'), *rows])}"
            f"<p>report: <code>{escape(str(self.report()))}</code></p>"
        )


def run(
    dataset: Any = None,
    *,
    test: Any = None,
    text: str = "text",
    label: str = "label",
    client: str | None = "client",
    labels: Mapping[Any, str] | Sequence[str] | None = None,
    about: str | None = None,
    slm: str | Path | None = None,
    llm: str | Path | None = None,
    generator: str | Path | None = None,
    strategy: str = "fdkt",
    epsilon: float = 8,
    seed: int = 0,
    folder: str | Path | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    overrides: Sequence[str] = (),
) -> Result:
    """Run to the end, in this process, as `fedduet federation=inprocess ...` does.

    `dataset`: the name of a task (`fedduet tasks`), a file or a folder of texts, "hub:NAME" for a
    data set of the hub, a pandas frame or a `datasets.Dataset`; None for the task that `overrides`
    name. Of all but named tasks, `text`, `label` and `client` (None: no column says whose row it
    is) are columns, `labels` the wordings (raw value -> wording, or a list), `about` what the texts
    are, and `test` rows of the same kind to measure on (None: a part of each client's).
    `slm`, `llm`, `generator`: a choice of `conf/`, or a model's folder. An override wins over an
    argument. Frames are written below the run folder's `sites/`, beside what simulated sites keep
    of their own; `folder` again, with the same rows, resumes.

    `on_event` hears every event of the run (a line of events.jsonl) as it is written; what it
    raises ends the run. Call this before torch is imported by something else: threads that wait
    for work are told not to spin, and torch reads that once.

    Raises ConfigError, with the command's sentences, before any model is loaded; RunFailed, or
    what stopped it, for a run that did not complete.
    """
    prepare()
    from fedduet.scripts.launching.launch import launch

    words = _Words(overrides)
    words.add("federation", "inprocess")
    words.add("strategy", strategy)
    words.add("privacy.epsilon", epsilon)
    words.add("seed", seed)
    if folder is not None:
        words.add("run.folder", str(folder))
    for group, chosen in (("slm", slm), ("llm", llm), ("generator", generator)):
        if chosen is not None:
            named = chosen in conf.choices(group)
            words.add(group if named else f"{group}.path", str(chosen))
    asked = {"test": test, "text": text, "label": label, "client": client}
    rows = _add_task(words, dataset, asked | {"labels": labels, "about": about})
    config = words.composed()
    place = config["run"]["folder"] or conf.run_folder(config, time.strftime("%Y%m%d-%H%M%S"))
    words.add("run.folder", place)
    for key, given in rows.items():
        words.add(
            key, str(given if _is_path(given) else _write(given, config["task"], Path(place)))
        )
    command = shlex.join(["fedduet", *words.all])
    summary = launch(words.composed(), command, [on_event] if on_event else [])
    return Result(Path(place).absolute(), summary)


# --- arguments as the overrides of a command -----------------------------------------------------


class _Words:
    """Overrides of a command line; those that the person wrote win over what is added."""

    def __init__(self, given: Iterable[str]) -> None:
        self._given = list(given)
        self._added: dict[str, str] = {}
        self._set = {re.split("[=@]", word.lstrip("+~"))[0] for word in self._given}

    def add(self, key: str, value: Any) -> None:
        """Set `key`, where no given override does."""
        if key not in self._set:
            self._added[key] = f"{key}={_literal(value, key)}"

    @property
    def all(self) -> list[str]:
        """What was added, then what was given."""
        return [*self._added.values(), *self._given]

    def composed(self) -> dict[str, Any]:
        """The configuration. Raises ConfigError for what Hydra would not take."""
        from hydra.errors import HydraException

        from fedduet.scripts.launching.words import check_words
        from fedduet.scripts.run import COMMANDS, advice

        check_words(self.all, COMMANDS)
        try:
            return conf.compose(self.all)
        except HydraException as problem:
            raise ConfigError(advice(str(problem))) from None


_PLAIN = re.compile(r"(?!(?:null|true|false|inf|nan)$)[A-Za-z_/][A-Za-z0-9_/.-]*", re.IGNORECASE)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_. /-]*")


def _literal(value: Any, key: str) -> str:
    """`value` in Hydra's grammar of overrides. Raises ConfigError for a key of a mapping that the
    grammar has no way to write."""
    if isinstance(value, Mapping):
        if odd := [raw for raw in value if not _PLAIN_KEY.fullmatch(str(raw))]:
            raise ConfigError(
                f"{key}: found the raw value {odd[0]!r}; allowed in a mapping: letters without"
                " accents, digits and _ - / . (or a list of labels, whose raw values are the"
                " wordings)"
            )
        return (
            "{"
            + ",".join(f"{raw}:{_literal(wording, key)}" for raw, wording in value.items())
            + "}"
        )
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(entry, key) for entry in value)}]"
    if value is None:
        return "null"
    if not isinstance(value, str) or _PLAIN.fullmatch(value):
        return str(value)
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped).replace("${", r"\${")
    return f'"{escaped}"'


# --- data ----------------------------------------------------------------------------------------

_DEFAULT = {"text": "text", "label": "label", "client": "client"}


def _add_task(words: _Words, dataset: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The words that say which task it is; returns what `task.path` and `task.test_path` are to be,
    paths or rows. Raises ConfigError."""
    if dataset is None or (isinstance(dataset, str) and dataset in conf.choices("task")):
        if dataset is not None:
            words.add("task", dataset)
        for argument, value in asked.items():
            if value != _DEFAULT.get(argument):
                raise ConfigError(
                    f"{argument}: found {value!r}, but the task {dataset or 'of the overrides'} has"
                    " its own; allowed: nothing here, or overrides of the section task"
                )
        return {}
    rows = {"task.path": dataset, "task.test_path": asked["test"]}
    if isinstance(dataset, str) and dataset.startswith(HUB):
        words.add("task", "hub")
        words.add("task.dataset", dataset.removeprefix(HUB))
        del rows["task.path"]
    elif (
        isinstance(dataset, str)
        and not re.search(r"[/.\\]", dataset)
        and not Path(dataset).exists()
    ):
        hint = nearest(dataset, conf.choices("task"))
        raise ConfigError(f"dataset: found {dataset!r}, neither a task nor a file; {hint}")
    else:
        words.add("task", "files")
    words.add("task.text_column", asked["text"])
    words.add("task.label_column", asked["label"])
    if not (_is_path(dataset) and Path(dataset).is_dir() and asked["client"] == "client"):
        words.add("task.client_column", asked["client"])
    labels = asked["labels"]
    if labels is None and isinstance(features := getattr(dataset, "features", None), Mapping):
        names = getattr(features.get(asked["label"]), "names", None)  # a ClassLabel
        labels = dict(enumerate(names)) if names else None
    if labels is not None:
        words.add("task.labels", labels)
    if asked["about"] is not None:
        words.add("task.about", asked["about"])
    return {key: given for key, given in rows.items() if given is not None}


def _is_path(given: Any) -> bool:
    return isinstance(given, str | os.PathLike)


def _write(given: Any, task: Mapping[str, Any], folder: Path) -> Path:
    """The columns of a frame or a `datasets.Dataset` that a run reads, as a file that only this
    user can read and that is named by what it holds, so that a run folder resumes with the same
    rows alone. Raises ConfigError for a missing column or anything else than a table."""
    from fedduet.tasks.data.read import Columns, check_columns

    frame = given.to_pandas() if hasattr(given, "to_pandas") else given
    if not hasattr(frame, "to_json") or not hasattr(frame, "columns"):
        raise ConfigError(
            f"dataset: found {type(given).__name__}; allowed: the name of a task, a path, a pandas"
            " frame, a datasets.Dataset"
        )
    columns = Columns(
        task["text_column"],
        task["label_column"],
        task["client_column"],
        user=task["user_column"],
    )
    check_columns(columns, [str(name) for name in frame.columns], "dataset")
    text = frame[list(dict.fromkeys(columns.needed))].to_json(orient="records", lines=True)
    place = folder.absolute() / "sites" / ".rows"  # no site's name starts so
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = place / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened:
        opened.write(text)
    return file
