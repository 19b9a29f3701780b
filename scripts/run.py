"""The `fedduet` command: runs a configuration, or one of the sub-commands."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedduet.scripts.launching.environment import leave, prepare

prepare()

import hydra  # noqa: E402  (the environment must be set before Flower and torch are imported)
from fedduet.conf.check import ConfigError, RunFailed, Waiting, nearest  # noqa: E402
from fedduet.scripts.launching.words import check_words  # noqa: E402
from fedduet.scripts.sweeping import plan as sweep  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.types import RunMode  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from fedduet import conf  # noqa: E402

USAGE = """fedduet: a cloud LLM and private small language models improve each other

  fedduet strategy=fdkt task=world privacy.epsilon=8 seed=0     run (Hydra overrides; -m sweeps; --cfg job prints the configuration)
  fedduet run.folder=runs/NAME ...                              the same command again resumes
  fedduet check OVERRIDES...                                    what a run will take (epsilon, tokens, time, memory), without running it
  fedduet data OVERRIDES...                                     what a data set holds: rows, lengths, repeats, every bad row
  fedduet pretrain --help                                       train a causal LM on text files
  fedduet table RUN...                                          several finished runs (seeds) as one Markdown table
  fedduet report RUN... [--out FILE]                            the same as one self-contained page (a run writes its own report.html)
  fedduet sweep-report DIR [--out FILE]                         all jobs of a sweep as one table and one page
  fedduet list [FOLDER]                                         the runs that there are, with state and accuracy
  fedduet open RUN                                              a run's report, or a sweep's page, in the browser
  fedduet diff RUN RUN                                          in which settings and figures two runs differ
  fedduet watch RUN                                             follow a run that goes on in another process
  fedduet track RUN... --to mlflow|wandb|tensorboard            repeat finished runs to a tracker (tracking.to=... does it as a run goes on)
  fedduet predict RUN --client C TEXT...                        what a site's trained SLM says of a text
  fedduet ask RUN --client C "QUESTION"                         one question to a site, answered by its SLM and the LLM (G-Boost)
  fedduet train-reward --questions FILE --llm DIR --out DIR     a process reward model from sampled solutions
  fedduet strategies | tasks | engines                          what there is to choose from
  fedduet --version                                             versions of FedDuet and of what it stands on
  fedduet audit --kinds worst,natural,release OVERRIDES...      a lower bound on epsilon from attacks, beside the accountant's upper bound
  fedduet attack members | secrets OVERRIDES...                 membership inference, and planted secrets that come out word for word
  fedduet attack interface [--moves N]                          two vaults on neighbouring data, and a server that plays any messages
  fedduet gateway --keys FILE llm.path=DIR                      the LLM over HTTP (OpenAI's completions), so that sites may ask it

groups: {groups}
"""


COMMANDS = {  # name: module and function, imported when it is asked for
    "pretrain": "fedduet.scripts.pretrain:main",
    "table": "fedduet.scripts.reporting.table:main",
    "report": "fedduet.scripts.reporting.page:main",
    "sweep-report": "fedduet.scripts.sweeping.report:main",
    "data": "fedduet.scripts.data:main",
    "check": "fedduet.scripts.forecasting.forecast:main",
    "ask": "fedduet.scripts.ask:main",
    "train-reward": "fedduet.scripts.train_reward:main",
    "list": "fedduet.scripts.runs:list_runs",
    "open": "fedduet.scripts.runs:open_report",
    "diff": "fedduet.scripts.runs:diff",
    "watch": "fedduet.scripts.look:watch",
    "track": "fedduet.scripts.reporting.trackers:main",
    "predict": "fedduet.scripts.look:predict",
    "audit": "fedduet.scripts.attacking.audit:main",
    "attack": "fedduet.scripts.attacking.attack:main",
    "gateway": "fedduet.scripts.gateway:main",
    "strategies": "fedduet.scripts.look:strategies",
    "tasks": "fedduet.scripts.look:tasks",
    "engines": "fedduet.scripts.look:engines",
    "--version": "fedduet.scripts.look:versions",
}


def _command(name: str) -> Callable[[list[str]], int]:
    module, _, function = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def main() -> int:
    """Exit code 0 only when what was asked was done; 2 for input that cannot work, 1 for a run that
    failed, 3 for one that waits for something outside and goes on with the same command."""
    arguments = sys.argv[1:]
    try:
        if arguments and arguments[0] in COMMANDS:
            return _command(arguments[0])(arguments[1:])
        if arguments and arguments[0] in ("-h", "--help", "help"):
            groups = ("strategy", "task", "llm", "slm", "generator", "privacy", "federation")
            print(
                USAGE.format(
                    groups="; ".join(f"{group}={'|'.join(conf.choices(group))}" for group in groups)
                )
            )
            return 0
        _complete_commands(arguments)
        check_words(arguments, COMMANDS)
        if sweep.is_sweep(arguments):
            return _sweep(arguments)
        _run_configuration()
        return max(_exit_codes, default=0)
    except ConfigError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except HydraException as problem:
        print(f"error: {advice(str(problem))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        return 130


def _complete_commands(arguments: list[str]) -> None:
    """For shell completion (docs/sweeps.md), which Hydra does of overrides alone: the sub-commands
    that the first word may become."""
    typed = os.environ.get("COMP_LINE", "").split(" ")[1:]
    if (
        "-sc" in arguments
        and any(word.startswith("query=") for word in arguments)
        and len(typed) == 1
    ):
        print(" ".join(name for name in COMMANDS if name.startswith(typed[0])))


QUOTING = (
    "a value with other signs than plain letters, digits and _ - / . is quoted, twice in a shell:"
    """ 'task.clients=["St. Mary","südklinik"]'"""
)


def advice(problem: str) -> str:
    """Hydra's complaint, with the nearest keys where a key is unknown."""
    first = problem.splitlines()[0]
    if parsed := re.match(r"(?:\w+Exception: |Error parsing override )(.*)", first):
        return f"{parsed[1]} cannot be read; {QUOTING}"
    unknown = re.search(r"Could not override '([^']+)'", problem)
    if not unknown:
        return first
    key = unknown[1].rstrip(".")
    return f"unknown key {key!r}; {nearest(key, list(conf.keys(conf.compose([]))))}"


def _sweep(arguments: list[str]) -> int:
    """All jobs of a sweep, then its table. 1 when a job did not complete; the others have run all
    the same."""
    from fedduet.scripts.sweeping.report import conclude

    planned = sweep.plan(arguments)
    if not any(word.startswith("hydra.sweep.dir=") for word in arguments):
        sys.argv.append(f"hydra.sweep.dir={planned.folder}")
    print(f"sweep folder: {planned.folder}, {len(planned.jobs)} jobs")
    try:
        _run_configuration()
    except (ConfigError, HydraException):
        raise
    except Exception as failure:  # a launcher's worker died; what it ran is named below
        print(f"error: the launcher stopped: {type(failure).__name__}: {failure}", file=sys.stderr)
    return conclude(planned.folder, planned.jobs)


_exit_codes: list[int] = []  # of the run


@hydra.main(config_path=str(conf.FOLDER), config_name="config", version_base="1.3")
def _run_configuration(config: DictConfig) -> Any:
    """One run, or one job of a sweep, whose other jobs go on whatever stops it."""
    from fedduet.scripts.launching.launch import launch

    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        overrides = list(hydra_config.overrides.task)
        return sweep.run_job(
            Path(hydra_config.sweep.dir).absolute(),
            overrides,
            conf.plain(config),
            launch,
        )
    try:
        command = shlex.join(["fedduet", *HydraConfig.get().overrides.task])
        accuracy = launch(conf.plain(config), command)["accuracy"]
    except Waiting as missing:
        print(f"waiting: {missing}", file=sys.stderr)
        _exit_codes.append(3)
        return None
    except (ConfigError, RunFailed) as problem:
        print(f"error: {problem}", file=sys.stderr)
        _exit_codes.append(2 if isinstance(problem, ConfigError) else 1)
        return None
    _exit_codes.append(0)
    return accuracy


def command() -> None:
    """Console entry."""
    leave(main())


if __name__ == "__main__":
    command()
