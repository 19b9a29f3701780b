"""Small runs of a configuration's very models, to learn what its phases cost here.
`python -m fedduet.scripts.forecasting.pilot FILE` runs them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedduet.scripts.launching.environment import prepare

NAMES = {  # of a phase's beginning: its kind; the first that fits
    "synthesize": "synthesize",
    "curate": "curate",
    "augment-zero": "augment_plain",
    "augment": "augment",
    "learn": "learn",
    "measure-llm": "measure_llm",
    "measure": "measure",
    "write": "write",
    "score": "score",
    "tune-generator": "tune_generator",
    "tune-task": "tune_task",
}
VERSION = 2  # of what is kept in the cache
# shares of the counts; the first run warms the process up and is not used [O]
SIZES = (0.0, 0.0, 0.25)


def shrunk(config: Mapping[str, Any], share: float, train: int, test: int) -> dict[str, Any]:
    """`config` with `share` of its counts, at least the least that works, one round, and few
    baselines; same models and batches.

    `train`: rows of the largest site, `test`: of its test split.
    """
    from fedduet.clients.vault.config import read_sites
    from fedduet.lm.dp.dpsgd import planned_steps
    from fedduet.lm.training.classify import planned_training_steps
    from fedduet.server.strategy import chosen_strategy

    def share_of(count: int, least: int, most: int = 10**9) -> int:
        return min(count, max(least, min(most, round(share * count))))

    small, chosen = copy.deepcopy(dict(config)), chosen_strategy(config["strategy"])
    settings = chosen.settings
    strategy = small["strategy"]
    part = read_sites(config)
    slm, generator, augment = part.slm, part.generator, chosen.augment
    small["generator"]["steps"] = share_of(planned_steps(generator, train)[0], 2, 20)
    steps = share_of(planned_training_steps(slm, train), 3, 40)
    small["slm"] |= {"min_steps": steps, "max_steps": steps}
    small["task"]["test_rows"] = share_of(test, 10, 200)
    strategy["rounds"] = 1
    strategy["baselines"] = dict.fromkeys(settings.KNOWN, False)
    if strategy["name"] == "fdkt":
        strategy["demonstrations_per_label"] = share_of(settings.demonstrations_per_label, 2)
        strategy["augment"] = dict(strategy.get("augment", {})) | {
            "per_label": share_of(augment.per_label, 2),
            "max_rounds": 1,
        }
        strategy["baselines"] |= {"zero_shot": True}
    else:
        strategy["per_label"] = share_of(settings.per_label, 3)
        strategy["llm_test_rows"] = share_of(settings.llm_test_rows, 10)
        strategy["keep_at_least"] = strategy["per_label"]
    small["privacy"] = dict(small["privacy"]) | {"policy": dict(small["privacy"]["policy"])}
    small["federation"] = dict(small["federation"]) | {"kind": "inprocess", "state_folder": None}
    return small


def measure(configs: Sequence[Mapping[str, Any]], cache: Path) -> dict[str, Any]:
    """What `main` prints for `configs`, from a process of its own; from the cache where the very
    same was measured here before.

    Raises RuntimeError with what a pilot said when it failed.
    """
    import torch

    plain = [
        {**config, "seed": 0, "run": None, "tracking": None, "federation": None}
        for config in configs
    ]
    here = [
        platform.node(),
        os.cpu_count(),
        torch.__version__,
        torch.cuda.is_available(),
        os.environ.get("OMP_NUM_THREADS"),
    ]
    digest = hashlib.sha256(
        json.dumps([VERSION, plain, here], sort_keys=True).encode()
    ).hexdigest()[:16]
    file = cache / f"calibration-{digest}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8")) | {"cached": True}
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            {**config, "run": {**config["run"], "folder": f"{folder}/{number}"}}
            for number, config in enumerate(configs)
        ]
        asked = Path(folder) / "configs.json"
        asked.write_text(json.dumps(runs), encoding="utf-8")
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "fedduet.scripts.forecasting.pilot", str(asked)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                "the pilot run stopped:"
                f" {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"
            )
        found = json.loads((Path(folder) / "found.json").read_text(encoding="utf-8"))
        found["start"] = found["ready"] - began
    cache.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def main(file: Path) -> None:
    """Run every configuration of the JSON `file`; write `found.json` beside it: seconds by kind,
    LLM usage, peak memory in bytes."""
    from fedduet.scripts.launching.federation import run_inprocess
    from fedduet.scripts.launching.preflight import preflight
    from fedduet.scripts.launching.run_config import read_run
    from fedduet.server.app import build_app

    runs, ready, cpu = [], 0.0, 0.0
    for config in json.loads(file.read_text(encoding="utf-8")):
        run = read_run(config)
        names, config = preflight(run), run.plain
        from fedduet.clients.app import app as client_app

        ready, cpu = ready or time.time(), cpu or time.process_time()
        run_inprocess(build_app(), client_app, config, len(names))
        summary = json.loads(
            (Path(config["run"]["folder"]) / "summary.json").read_text(encoding="utf-8")
        )
        events = [
            json.loads(line)
            for line in (
                (Path(config["run"]["folder"]) / "events.jsonl")
                .read_text(encoding="utf-8")
                .splitlines()
            )
        ]
        runs.append(
            {
                "seconds": _by_kind(summary["seconds"]["phases"]),
                "rest": summary["seconds"]["orchestration"],
                "usage": _usage(events),
                "tuned": {_kind(entry["phase"]): entry["steps"] for entry in _tuned(events)},
            }
        )
    import torch

    scale = 1 if sys.platform == "darwin" else 1024
    # processor seconds for a second of wall time
    busy = (time.process_time() - cpu) / max(time.time() - ready, 1e-9)
    found = {
        "runs": runs,
        "ready": ready,
        "busy": busy,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
    }
    found["gpu_memory"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    (file.parent / "found.json").write_text(json.dumps(found), encoding="utf-8")


def _kind(phase: str) -> str:
    return next((kind for start, kind in NAMES.items() if phase.startswith(start)), phase)


def _by_kind(phases: Mapping[str, float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for phase, seconds in phases.items():
        total[_kind(phase)] = total.get(_kind(phase), 0.0) + seconds
    return total


def _usage(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """By kind: requests, prompt_tokens, new_tokens."""
    total: dict[str, dict[str, int]] = {}
    for entry in events:
        if entry["event"] == "llm_usage":
            of = total.setdefault(
                _kind(entry["phase"]), {"requests": 0, "prompt_tokens": 0, "new_tokens": 0}
            )
            for key in of:
                of[key] += entry[key]
    return total


def _tuned(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tunings with their phases: an event `tuned` follows the phase it tells of."""
    found, phase = [], ""
    for entry in events:
        phase = entry["phase"] if entry["event"] == "phase_end" else phase
        if entry["event"] == "tuned":
            found.append({"phase": phase, "steps": entry["steps"]})
    return found


if __name__ == "__main__":
    prepare()
    main(Path(sys.argv[1]))
