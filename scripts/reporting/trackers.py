"""Trackers: a run's figures for TensorBoard, MLflow or Weights & Biases; `events.jsonl` is the
truth, they repeat its numbers."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pydantic
import yaml
from fedduet.conf.check import ConfigError, Section, check, nearest

# name in a configuration -> module
PACKAGE = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


class TrackingConfig(Section):
    """Which trackers hear of a run. `to`: auto is TensorBoard where it is installed."""

    to: Literal["auto"] | tuple[str, ...] = "auto"
    """Which trackers hear of a run: auto (TensorBoard where it is installed), none, or a list
    of tensorboard, mlflow, wandb."""
    project: str = pydantic.Field("fedduet", min_length=1)
    """MLflow's experiment, W&B's project."""
    address: str | None = None
    """MLflow's tracking server; null: the file mlflow.db in the run folder."""

    @pydantic.field_validator("to", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        names = [] if value in (None, "none") else value
        names = [names] if isinstance(names, str) and names != "auto" else names
        for name in () if names == "auto" else names:
            if name not in PACKAGE:
                raise ValueError(
                    f"found {name!r}; {nearest(str(name), list(PACKAGE))}, or auto, or none"
                )
        return names if names == "auto" else tuple(names)


class Sink(Protocol):
    """Where numbers go. Anything it raises ends the tracking, never the run."""

    def log(self, figures: Mapping[str, float], step: int, time: float) -> None:
        """Numbers by name; `step` grows over the run, `time` in seconds since 1970."""
        ...

    def close(self) -> None:
        """No more comes."""
        ...


def checked(values: Mapping[str, Any] | None) -> TrackingConfig:
    """The `tracking` section. Raises ConfigError, also for a tracker that is asked for and not
    installed."""
    config = check(TrackingConfig, values or {}, "tracking")
    for name in () if config.to == "auto" else config.to:
        if importlib.util.find_spec(PACKAGE[name]) is None:
            raise ConfigError(
                f"tracking.to: {name} is not installed; pip install 'fedduet[{name}]', or leave"
                " it out"
            )
    return config


def sinks(config: TrackingConfig, folder: Path) -> dict[str, Callable[[], Sink]]:
    """How to open each tracker of `config` for the run in `folder`, by name."""
    settings = (
        yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if (folder / "config.yaml").is_file()
        else {}
    )
    known: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "mlflow": lambda: MLflow(folder, config, settings),
        "wandb": lambda: WandB(folder, config, settings),
    }
    wanted = config.to
    if wanted == "auto":
        wanted = ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    return {name: known[name] for name in wanted}


class Tracking:
    """Hears a run's events and passes their figures on. `said` is told, once, of a tracker that
    fails and is left out."""

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Sink]],
        said: Callable[[str], None] = print,
        step: int = 0,
    ) -> None:
        self._openers, self._said, self._step = dict(openers), said, step
        self._open: dict[str, Sink] = {}
        self._sums: Counter[str] = Counter()

    def event(self, entry: Mapping[str, Any]) -> None:
        """One event of the run folder."""
        self._step += 1
        if found := figures(entry, self._sums):
            self._each(lambda sink: sink.log(found, self._step, float(entry["time"])))

    def finish(self, summary: Mapping[str, Any], time: float) -> None:
        """What only the summary says, and the end."""
        spent = {
            f"epsilon/{site}": value
            for site, value in summary["epsilon"].items()
            if math.isfinite(value)
        }
        if summary.get("gap_closed") is not None:
            spent["gap_closed"] = summary["gap_closed"]
        if spent:
            self._each(lambda sink: sink.log(spent, self._step + 1, time))
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        for name, sink in self._open.items():
            self._attempt(name, sink.close)
        self._open.clear()

    def _each(self, act: Callable[[Sink], None]) -> None:
        for name, opener in list(self._openers.items()):

            def one(name: str = name, opener: Callable[[], Sink] = opener) -> None:
                if name not in self._open:
                    self._open[name] = opener()
                act(self._open[name])

            if not self._attempt(name, one):
                self._openers.pop(name)

    def _attempt(self, name: str, act: Callable[[], None]) -> bool:
        try:
            act()
        # a tracker's trouble is none of the run's; events.jsonl has everything
        except Exception as failure:
            self._said(
                f"{name} is left out: {type(failure).__name__}: {failure} (later: fedduet track RUN"
                f" --to {name})"
            )
            return False
        return True


def figures(entry: Mapping[str, Any], sums: Counter[str]) -> dict[str, float]:
    """The numbers of one event, by name; `sums` holds what is added up over the run and is brought
    up to date."""
    kind, found = entry["event"], {}
    if kind == "accuracy" and entry["by_site"]:
        found = {
            f"accuracy/{entry['model']}/{site}": value for site, value in entry["by_site"].items()
        }
        found[f"accuracy/{entry['model']}"] = float(np.mean(list(entry["by_site"].values())))
    elif kind == "phase_end":
        found = {f"seconds/{entry['phase']}": entry["seconds"]}
    elif kind in ("sent", "answered"):
        name = "wire/down_bytes" if kind == "sent" else "wire/up_bytes"
        sums[name] += entry["bytes"]
        found = {name: sums[name]}
    elif kind == "llm_usage":
        for key in ("requests", "prompt_tokens", "new_tokens"):
            sums[f"llm/{key}"] += entry[key]
        found = {name: value for name, value in sums.items() if name.startswith("llm/")}
    elif kind == "round":
        found = {
            f"round/{key}": value
            for key, value in entry.items()
            if key not in ("event", "time", "elapsed")
        }
    elif kind == "tuned":
        found = {
            f"tuned/{entry['adapter']}/{key}": entry[key]
            for key in ("loss", "kl", "steps")
            if key in entry
        }
    elif kind == "failure":
        sums["failures"] += 1
        found = {"failures": sums["failures"]}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


# -- The trackers ----------------------------------------------------------------------------------


class TensorBoard:
    """Scalars in `folder`; `tensorboard --logdir runs` shows all runs."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, figures: Mapping[str, float], step: int, time: float) -> None:
        """See Sink."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step, walltime=time)

    def close(self) -> None:
        """See Sink."""
        self._writer.close()


class MLflow:
    """A run of the experiment `project`, named as the run folder; a resumed run goes on in it."""

    def __init__(self, folder: Path, config: TrackingConfig, settings: Mapping[str, Any]) -> None:
        import mlflow

        self._client = mlflow.MlflowClient(
            tracking_uri=config.address or f"sqlite:///{folder}/mlflow.db"
        )
        experiment = self._client.get_experiment_by_name(config.project)
        identity = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(config.project)
        )
        kept = folder / "mlflow_run"
        if kept.is_file():
            self._run = kept.read_text().strip()
            return
        self._run = self._client.create_run(identity, run_name=folder.name).info.run_id
        kept.write_text(self._run)
        for key, value in flat(settings):
            self._client.log_param(self._run, key, str(value)[:500])

    def log(self, figures: Mapping[str, float], step: int, time: float) -> None:
        """See Sink."""
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, timestamp=int(time * 1000), step=step)

    def close(self) -> None:
        """See Sink."""
        self._client.set_terminated(self._run)


class WandB:
    """A run of the project `project`; offline where WANDB_MODE says so."""

    def __init__(self, folder: Path, config: TrackingConfig, settings: Mapping[str, Any]) -> None:
        import wandb

        identity = (
            (folder / "run_id").read_text().strip() if (folder / "run_id").is_file() else None
        )
        self._run = wandb.init(
            project=config.project,
            name=folder.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=dict(flat(settings)),
        )

    def log(self, figures: Mapping[str, float], step: int, time: float) -> None:
        """See Sink."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()


NOT_TOLD = ("run", "federation", "tracking")  # folders and addresses of this machine


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what a run computes with; where it runs stays here."""
    for key, value in settings.items():
        if not above and key in NOT_TOLD:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def main(argv: Sequence[str]) -> int:
    """`fedduet track RUN... --to NAME`: repeat runs that are there already to a tracker."""
    parser = argparse.ArgumentParser(prog="fedduet track", description=main.__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--to", required=True, choices=list(PACKAGE))
    parser.add_argument("--project", default="fedduet")
    parser.add_argument("--address", help="MLflow's tracking server")
    given = parser.parse_args(list(argv))
    config = checked({"to": [given.to], "project": given.project, "address": given.address})
    troubles: list[str] = []
    for folder in given.runs:
        file = folder / "events.jsonl"
        if not file.is_file():
            raise ConfigError(f"{folder} has no events.jsonl; give run folders")
        tracking, last = Tracking(sinks(config, folder.absolute()), troubles.append), 0.0
        for line in file.read_text(encoding="utf-8").split("\n"):
            if line:
                entry = json.loads(line)
                tracking.event(entry)
                last = entry["time"]
        summary = folder / "summary.json"
        tracking.finish(
            (
                json.loads(summary.read_text(encoding="utf-8"))
                if summary.is_file()
                else {"epsilon": {}}
            ),
            last,
        )
        print(troubles[-1] if troubles else f"{folder} -> {given.to}")
    return int(bool(troubles))
