"""summary.json: the contract that reports, sweeps and checks rely on, from what a run measured and
its events."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from fedduet.strategies import find
from fedduet.strategies.run.metrics import measured
from fedduet.strategies.run.moves import Moves, gap_closed
from fedduet.strategies.run.run_folder import RunFolder
from fedduet.strategies.run.spec import RIVALS, Spec
from fedduet.wire.messages import Learned

PACKAGES = ("flwr", "torch", "transformers", "peft", "opacus", "ray", "hydra-core", "dp-accounting")


def summarise(
    run: RunFolder, moves: Moves, spec: Spec, about: Mapping[str, Any], status: str
) -> dict[str, Any]:
    """The summary as plain values. `accuracy` means over sites on the test split; `seconds` and
    `wire` add up all starts of the run; `about`: task, seed, rounds, and the LLM as described."""
    events = list(run.events())
    mean = {
        model: float(np.mean(list(by_site.values())))
        for model, by_site in moves.accuracy.items()
        if by_site
    }
    name = spec.final
    bounds = {"local", "pooled", name} <= mean.keys()
    return {
        "strategy": spec.name,
        "spec": spec.told(),
        "task": about["task"],
        "seed": about["seed"],
        "clients": len(moves.sites.names),
        "rounds": about["rounds"],
        "status": status,
        "accuracy": mean,
        "accuracy_per_client": _by_site(moves.accuracy),
        **measured(moves.details, about["metric"]),
        "training": {model: _training(sites) for model, sites in moves.trainings.items()},
        "gap_closed": gap_closed(mean[name], mean["local"], mean["pooled"]) if bounds else None,
        "epsilon": {site: receipt.epsilon_total for site, receipt in moves.receipts.items()},
        "delta": {site: receipt.delta for site, receipt in moves.receipts.items()},
        "receipts": moves.receipts,
        **moves.findings,
        "wire": _wire(events),
        "llm": dict(about["llm"]) | _usage(events),
        "curated": [entry for entry in events if entry["event"] in ("curated", "augmented")],
        "seconds": _seconds(events),
        "failures": _failures(events),
        "versions": (
            {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
        ),
    }


def told(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `Spec.told` says of the run's strategy; also of a summary that was written without it,
    where the strategy is known."""
    if "spec" in summary:
        return {"rivals": list(RIVALS)} | summary["spec"]
    name = summary["strategy"]
    if spec := find(name):
        return spec.told()
    question = f"What does {name} bring?"
    empty = {"rivals": list(RIVALS), "contrasts": [], "columns": {}, "base": "local"}
    return {"final": name, "taught": [name], "question": question, **empty}


def spends(model: str, summary: Mapping[str, Any]) -> bool:
    """Whether the epsilon of a run stands behind a method; a baseline that asks the sites for
    nothing has none."""
    spec = told(summary)
    own = {spec["final"], *spec["taught"], "dp_only"}
    return model in own or model not in {*spec["rivals"], "fedavg", "pooled"}


def ordered(models: Iterable[str], summary: Mapping[str, Any]) -> list[str]:
    """Methods in the order of the strategy's columns, then the others as they come."""
    columns = list(told(summary)["columns"])
    return sorted(models, key=lambda one: columns.index(one) if one in columns else len(columns))


def _training(by_site: Mapping[str, Sequence[Learned]]) -> dict[str, Any]:
    """What ran, means over sites; rounds of averaging add up."""
    sums = {
        key: float(np.mean([sum(getattr(one, key) for one in parts) for parts in by_site.values()]))
        for key in ("steps", "private_passes", "generated_passes")
    }
    checkpoints = {one.checkpoint for parts in by_site.values() for one in parts}
    return sums | {"checkpoint": " or ".join(sorted(checkpoints))}


def _by_site(accuracy: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    sites = sorted({site for by_site in accuracy.values() for site in by_site})
    return {
        site: {model: by_site[site] for model, by_site in accuracy.items() if site in by_site}
        for site in sites
    }


def _wire(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    down = up = 0
    for entry in events:
        down += entry["bytes"] if entry["event"] == "sent" else 0
        up += entry["bytes"] if entry["event"] == "answered" else 0
    return {"up_bytes": up, "down_bytes": down}


def _usage(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    used = [entry for entry in events if entry["event"] == "llm_usage"]
    return {
        key: sum(entry[key] for entry in used)
        for key in ("prompt_tokens", "new_tokens", "requests", "errors")
    }


def _seconds(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Phase times by side; `orchestration` is what no phase accounts for."""
    total, last = 0.0, 0.0
    sides: dict[str, float] = {"llm": 0.0, "clients": 0.0}
    phases: dict[str, float] = {}
    for entry in events:
        if entry["event"] == "start":  # a new start of the run: its clock begins again
            total, last = total + last, 0.0
        last = entry["elapsed"]
        if entry["event"] == "phase_end":
            sides[entry["side"]] = sides.get(entry["side"], 0.0) + entry["seconds"]
            phases[entry["phase"]] = phases.get(entry["phase"], 0.0) + entry["seconds"]
    total += last
    rounded = {side: round(seconds, 3) for side, seconds in sides.items()}
    return {
        "total": round(total, 3),
        **rounded,
        "orchestration": round(total - sum(sides.values()), 3),
        "phases": phases,
    }


def _failures(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    keys = ("phase", "client", "kind", "reason")
    return [{key: entry[key] for key in keys} for entry in events if entry["event"] == "failure"]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
