"""Small commands for looking: what there is to choose from, a run as it goes on, and what a trained
SLM says of a text."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from fedduet.clients.simulated import site_folder
from fedduet.conf.check import ConfigError, check, nearest
from fedduet.scripts.reporting.terminal import Display
from fedduet.strategies import installed
from fedduet.strategies.run.summary import PACKAGES, told
from rich.console import Console
from rich.table import Table

from fedduet import conf


def strategies(_: Sequence[str]) -> int:
    """`fedduet strategies`"""
    more = {f"strategy=custom strategy.name={name}": one.value for name, one in installed().items()}
    return _choices("strategy", more)


def tasks(_: Sequence[str]) -> int:
    """`fedduet tasks`"""
    return _choices("task")


def engines(_: Sequence[str]) -> int:
    """`fedduet engines`"""
    return _choices("llm")


def versions(_: Sequence[str]) -> int:
    """`fedduet --version`: of FedDuet, and of the packages that it stands on, one a line."""
    for name in ("fedduet", *PACKAGES):
        try:
            print(f"{name} {version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
    return 0


def _choices(group: str, more: Mapping[str, str] | None = None) -> int:
    """Every choice of a configuration group with the first line of its file, then `more`."""
    table = Table(show_header=False, box=None)
    for name in conf.choices(group):
        first = (
            (conf.FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        )
        table.add_row(f"{group}={name}", first.removeprefix("#").strip())
    for name, said in (more or {}).items():
        table.add_row(name, said)
    Console().print(table)
    return 0


def watch(argv: Sequence[str]) -> int:
    """`fedduet watch RUN`: the display of a run in another process, until it ends. 0 for a run that
    completed, else 1."""
    parser = argparse.ArgumentParser(prog="fedduet watch", description=watch.__doc__)
    parser.add_argument(
        "run", type=Path, help="a run folder, of a run that is going on or has ended"
    )
    parser.add_argument(
        "--wait",
        type=float,
        help="seconds to wait for a folder that is not there yet; of one without events 10",
    )
    parser.add_argument(
        "--serve",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="show the run as a page on 127.0.0.1 instead, until Ctrl-C; without PORT any free one",
    )
    given = parser.parse_args(list(argv))
    if given.serve is not None:
        return _serve(given.run, given.serve)
    wait = 10.0 if given.wait is None else given.wait
    file, deadline = given.run / "events.jsonl", time.monotonic() + wait
    if not given.run.is_dir() and given.wait is None:
        raise ConfigError(
            f"{given.run}: no such folder; give the folder that the run printed when it started, or"
            " --wait SECONDS for one that is to come"
        )
    while not file.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{given.run} has no events.jsonl; give the folder that the run printed when it"
                " started"
            )
        time.sleep(0.2)
    with Display(given.run) as display, file.open(encoding="utf-8") as lines:
        line = ""
        while True:
            line += lines.readline()
            if not line.endswith("\n"):  # nothing new, or half a line
                time.sleep(0.2)
                continue
            entry, line = json.loads(line), ""
            display.event(entry)
            if entry["event"] == "end" and not _starts_again(lines):
                return int(entry["status"] != "completed")


def _serve(run: Path, port: int) -> int:
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is no run folder; give the one that the run printed")
    from fedduet.scripts.reporting.live import LOOPBACK, server

    with server(run, port) as serving:
        print(f"http://{LOOPBACK}:{serving.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        serving.serve_forever()
    return 0


def _starts_again(lines: object) -> bool:
    """Whether more was already written after an end: the run was started again."""
    place = lines.tell()  # type: ignore[attr-defined]
    more = bool(lines.read(1))  # type: ignore[attr-defined]
    lines.seek(place)  # type: ignore[attr-defined]
    return more


def predict(argv: Sequence[str]) -> int:
    """`fedduet predict RUN --client C TEXT...`: what a simulated site's SLM says, one line a text:
    label and probability."""
    parser = argparse.ArgumentParser(prog="fedduet predict", description=predict.__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--client", required=True)
    parser.add_argument(
        "--model",
        help=(
            "default: the one that the run's strategy ended with; local and the baselines are"
            " there too"
        ),
    )
    given = parser.parse_args(list(argv))
    folder = model_folder(given.run, given.client, given.model)
    from fedduet.lm.models.load import load_classifier, load_tokenizer
    from fedduet.lm.training.classify import predict_probabilities
    from fedduet.lm.training.config import SLMConfig
    from fedduet.tasks.config import TaskConfig
    from fedduet.tasks.data.load import build_task

    config = yaml.safe_load((given.run / "config.yaml").read_text(encoding="utf-8"))
    task = build_task(check(TaskConfig, config["task"], "task"))
    tokenizer = load_tokenizer(folder)
    model = load_classifier(folder, len(task.labels), 0, tokenizer)
    probabilities = predict_probabilities(
        model, tokenizer, given.texts, check(SLMConfig, config["slm"], "slm").max_tokens
    )
    print(
        f"{folder.name} at {given.client}: {_measured(given.run, given.client, folder.name)}",
        file=sys.stderr,
    )
    for row, text in zip(probabilities, given.texts, strict=True):
        print(f"{task.labels[int(row.argmax())]}\t{row.max():.3f}\t{text}")
    return 0


def _measured(run: Path, client: str, model: str) -> str:
    """What the run measured of the model, for a reader who is about to believe it."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    accuracy = summary["accuracy_per_client"][client].get(model)
    if accuracy is None:
        return "its accuracy was not measured in this run"
    said = f"right on {accuracy:.1%} of the site's test texts"
    gap = summary.get("metrics_per_client", {}).get(model, {}).get(client, {}).get("ece")
    return said if gap is None else f"{said}; its probabilities are off by {gap:.2f} on the mean"


def model_folder(run: Path, client: str, model: str | None) -> Path:
    """Where a simulated site keeps an SLM of this run: a plain Hugging Face folder. Raises
    ConfigError with what there is."""
    if not (run / "summary.json").is_file():
        raise ConfigError(f"{run} has no summary.json; give the folder of a finished run")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    sites = Path(config["federation"]["state_folder"] or run / "sites")
    sites = sites if sites.is_dir() else run / "sites"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if client not in summary["accuracy_per_client"]:
        raise ConfigError(
            f"--client: found {client!r}; {nearest(client, list(summary['accuracy_per_client']))}"
        )
    kept = sites / site_folder(client) / "models" / (run / "run_id").read_text().strip()
    name = model or told(summary)["final"]
    models = (
        sorted(file.parent.name for file in kept.glob("*/config.json")) if kept.is_dir() else []
    )
    there = [one for one in models if not one.startswith("generator-")]
    if name not in there:
        raise ConfigError(
            f"--model: found {name!r}; {client} keeps {', '.join(there) or 'no model of this run'}"
        )
    return kept / name
