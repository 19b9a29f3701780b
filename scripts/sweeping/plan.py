"""A sweep on disk: its jobs, a folder for each with a name that tells the overrides, what became of
them, what is skipped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedduet.conf.check import ConfigError, RunFailed
from fedduet.strategies.run.run_folder import differing, write_atomically

PLAN, RECORD = "sweep.json", "job.json"
# how and where a job runs, not what it computes
NOT_NAMED = ("federation", "run", "tracking", "hydra")
LONGEST = 150  # characters of a folder's name, of which file systems allow 255 [O]
MULTIRUN = ("-m", "--multirun")
SHOWS = (
    "-c",
    "--cfg",
    "-h",
    "--help",
    "--hydra-help",
    "-i",
    "--info",
    "-sc",
    "--shell-completion",
    "-p",
    "--package",
    "--version",
)


@dataclass(frozen=True)
class Sweep:
    """The jobs of one start of a sweep, by folder name, in their order; `folder` is absolute."""

    folder: Path
    jobs: Mapping[str, tuple[str, ...]]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether the words of the command line start a sweep (and do not only show something)."""
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    return bool(flags & set(MULTIRUN)) and not flags & set(SHOWS)


def plan(arguments: Sequence[str], root: Path = Path("runs")) -> Sweep:
    """The sweep that `arguments` describe, written to `sweep.json` beside jobs that are there
    already.

    Without `hydra.sweep.dir=` the folder is under `root`, named by a digest of what is swept: the
    same command finds it again. Raises ConfigError for a sweep that cannot work.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [argument for argument in arguments if not argument.startswith("-")]
    given = dict(word.split("=", 1) for word in words if word.startswith("hydra"))
    parsed = [
        one
        for one in OverridesParser.create().parse_overrides(words)
        if not one.key_or_group.startswith("hydra")
    ]
    for one in parsed:
        if one.key_or_group == "run.folder":
            raise ConfigError(
                "run.folder: every job of a sweep has its own; leave it out, and name the whole"
                " with hydra.sweep.dir=FOLDER"
            )
        if one.is_sweep_override() and (
            not one.is_discrete_sweep() or one.value_type.name == "GLOB_CHOICE_SWEEP"
        ):
            raise ConfigError(
                f"{one.input_line}: allowed in a sweep: values with commas, choice(...) or"
                " range(...)"
            )
    if not any(one.is_sweep_override() for one in parsed):
        raise ConfigError("-m: nothing is swept; give a key several values, e.g. seed=0,1,2")
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    swept = [one.get_key_element() for one in parsed if one.is_sweep_override()]
    named = [job_name(job, swept) for job in batch]
    jobs = {name: tuple(job) for name, job in zip(named, batch, strict=True)}
    if len(jobs) < len(batch):
        twice = next(name for name in jobs if named.count(name) > 1)
        raise ConfigError(
            f"{twice}: this job is in the sweep twice; give every value once, and sweep nothing of"
            f" {', '.join(NOT_NAMED)}"
        )
    whole = sorted(sorted(_named(job).items()) for job in batch)
    digest = hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:8]
    folder = Path(given.get("hydra.sweep.dir", root / f"sweep-{digest}")).absolute()
    _keep_plan(folder, jobs, swept)
    return Sweep(folder, jobs)


def _keep_plan(folder: Path, jobs: Mapping[str, Sequence[str]], swept: Sequence[str]) -> None:
    before = read_plan(folder)
    kept = {
        "swept": list(dict.fromkeys([*before["swept"], *swept])),
        "jobs": before["jobs"] | {n: list(o) for n, o in jobs.items()},
    }
    write_atomically(folder / PLAN, json.dumps(kept, indent=1) + "\n")


def read_plan(folder: Path) -> dict[str, Any]:
    """`swept` keys and `jobs` (name to overrides) of all starts of the sweep in `folder`; empty
    where there is none."""
    file = folder / PLAN
    return (
        json.loads(file.read_text(encoding="utf-8"))
        if file.is_file()
        else {"swept": [], "jobs": {}}
    )


def job_name(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """The folder of a job: what is swept (of no sweep, what was overridden); a name that would be
    too long, or not one for a folder, ends in a digest."""
    kept = _named(overrides)
    shown = [key for key in swept if key in kept] or kept
    full = ",".join(f"{key}={kept[key]}" for key in shown)
    safe = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", full).lstrip(".")
    if len(safe) <= LONGEST and safe == full:
        return safe
    return f"{safe[:LONGEST]}~{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def _named(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides that say what a job computes, by key."""
    parts = dict(override.split("=", 1) for override in overrides)
    return {
        key: value
        for key, value in parts.items()
        if re.split(r"[.@]", key.lstrip("+~"))[0] not in NOT_NAMED
    }


# -- One job ---------------------------------------------------------------------------------------


def run_job(
    folder: Path,
    overrides: Sequence[str],
    config: dict[str, Any],
    launch: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Run one job in its folder under `folder`, unless it has finished there; what stops it is
    written down and not raised."""
    name = next(
        (name for name, of in read_plan(folder)["jobs"].items() if list(of) == list(overrides)),
        None,
    )
    path = folder / (name or job_name(overrides, []))
    config = config | {"run": {**config["run"], "folder": str(path)}}
    record = {
        "name": path.name,
        "overrides": list(overrides),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.time(),
    }
    if _finished(path) and not differing(path, config):
        print(f"kept {path.name}: finished before")
        if state(path)[0] != "completed":  # what stopped it came after its end
            _keep_record(
                path, record | {"status": "completed", "problem": "", "ended": time.time()}
            )
        return
    again = (path / "events.jsonl").is_file()
    print(f"{'resuming' if again else 'starting'} {path.name}")
    _keep_record(path, record | {"status": "running"})
    status, problem = "completed", ""
    try:
        launch(config)
    except (ConfigError, RunFailed) as failure:
        status, problem = "failed", str(failure)
    except Exception as failure:  # whatever it is, the other jobs go on
        status, problem = "failed", f"{type(failure).__name__}: {failure}"
        write_atomically(path / "traceback.txt", traceback.format_exc())
    if problem:
        print(f"error: {path.name}: {problem}")
    _keep_record(path, record | {"status": status, "problem": problem, "ended": time.time()})


def _keep_record(path: Path, record: Mapping[str, Any]) -> None:
    write_atomically(path / RECORD, json.dumps(record, indent=1) + "\n")


def _finished(path: Path) -> bool:
    file = path / "summary.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["status"] == "completed"


# -- What became of them ---------------------------------------------------------------------------


def state(path: Path) -> tuple[str, str]:
    """(completed | failed | unfinished | missing, why) of the job in the folder `path`."""
    record = (
        json.loads((path / RECORD).read_text(encoding="utf-8")) if (path / RECORD).is_file() else {}
    )
    if record.get("status") == "failed":
        return "failed", record["problem"]
    if _finished(path):
        return "completed", ""
    if record or (path / "events.jsonl").is_file():
        return "unfinished", "it was stopped, or goes on; the same command resumes it"
    return "missing", "it never started; the same command starts it"
