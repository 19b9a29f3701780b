"""The run folder: events, artefacts, and phases that are done once, however often a run is started
again on it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fedduet.conf.check import ConfigError

Listener = Callable[[dict[str, Any]], None]


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader or a crash sees the old file or the new one, never
    a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class RunFolder:
    """One run on disk: `config.yaml`, `events.jsonl`, artefacts, `checkpoint/`, `summary.json`.

    `listeners` hear every event as it is written (a progress display, a tracker); `events.jsonl`
    stays the source of truth.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, Any], listeners: Iterable[Listener] = ()
    ) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.listeners = list(listeners)
        self._keep_config(config)
        self.started = time.monotonic()

    def _keep_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml; refuse a folder that holds a different run."""
        text = _as_yaml(config)
        if not (self.path / "config.yaml").exists():
            write_atomically(self.path / "config.yaml", text)
            return
        if differ := differing(self.path, config):
            raise ConfigError(
                f"{self.path} holds a run with another configuration; it differs in"
                f" {', '.join(differ)}. Use another folder (run.folder=...) or the same"
                " configuration."
            )

    def event(self, event: str, /, **values: Any) -> None:
        """Append one line to events.jsonl and tell the listeners."""
        entry = {
            "event": event,
            "time": time.time(),
            "elapsed": round(time.monotonic() - self.started, 3),
            **values,
        }
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        for listener in self.listeners:
            listener(entry)

    def events(self) -> Iterator[dict[str, Any]]:
        """All events written so far, by this and earlier starts of the run."""
        file = self.path / "events.jsonl"
        if file.exists():
            with file.open(encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.endswith("\n"))

    @contextmanager
    def phase(self, name: str, side: str) -> Iterator[None]:
        """Time a phase; `side` is "llm", "clients" or "server", which is how seconds are summed in
        the summary."""
        began = time.monotonic()
        self.event("phase_start", phase=name, side=side)
        yield
        self.event("phase_end", phase=name, side=side, seconds=round(time.monotonic() - began, 3))

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value of `compute`, computed at most once per run folder; a later start reads it
        from `checkpoint/`."""
        file = self.path / "checkpoint" / f"{name}.json"
        if file.exists():
            self.event("phase_reused", phase=name)
            return json.loads(file.read_text(encoding="utf-8"))
        value = compute()
        write_atomically(file, json.dumps(_plain(value), ensure_ascii=False))
        return json.loads(json.dumps(_plain(value)))

    def kept(self, name: str) -> Any:
        """What `once` keeps under this name. Raises FileNotFoundError where there is nothing
        yet."""
        return json.loads((self.path / "checkpoint" / f"{name}.json").read_text(encoding="utf-8"))

    def once_arrays(
        self, name: str, compute: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The same for named arrays."""
        file = self.path / "checkpoint" / f"{name}.npz"
        if not file.exists():
            values = compute()
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{os.getpid()}.{file.name}")
            np.savez(partial, **values)  # type: ignore[arg-type]  # numpy types them as allow_pickle
            partial.replace(file)
            return values
        self.event("phase_reused", phase=name)
        with np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def artefact(self, name: str, rows: Iterable[Any]) -> None:
        """Write `name`.jsonl, one dataclass or mapping a line, replacing an older one."""
        write_atomically(
            self.path / f"{name}.jsonl",
            "".join(json.dumps(_plain(r), ensure_ascii=False) + "\n" for r in rows),
        )

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_atomically(
            self.path / "summary.json",
            json.dumps(_plain(values), indent=1, ensure_ascii=False) + "\n",
        )


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


# where and how a run executes, not what it computes
_MAY_DIFFER = {"run", "federation", "tracking"}


def differing(path: Path, config: Mapping[str, Any]) -> list[str]:
    """The keys in which the run in the folder `path` was configured otherwise, where and how it
    executes aside; [] where none is."""
    file = path / "config.yaml"
    return (
        sorted(_differences(yaml.safe_load(file.read_text()), yaml.safe_load(_as_yaml(config))))
        if file.exists()
        else []
    )


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False)


def _differences(found: Any, wanted: Any, at: str = "") -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in {*found, *wanted}:
            if at or key not in _MAY_DIFFER:
                yield from _differences(
                    found.get(key), wanted.get(key), f"{at}.{key}" if at else str(key)
                )
    elif found != wanted:
        yield at
