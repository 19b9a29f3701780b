"""summary.json: the contract that reports, sweeps and checks rely on, from what a run measured and
its events."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from fedduet.strategies.run.moves import Moves, gap_closed
from fedduet.strategies.run.run_folder import RunFolder

PACKAGES = ("flwr", "torch", "transformers", "peft", "opacus", "ray", "hydra-core", "dp-accounting")


def summarise(
    run: RunFolder, moves: Moves, config: Mapping[str, Any], status: str, llm: Mapping[str, Any]
) -> dict[str, Any]:
    """The summary as plain values. `accuracy` means over sites on the test split; `seconds` and
    `wire` add up all starts of the run."""
    events = list(run.events())
    mean = {
        model: float(np.mean(list(by_site.values())))
        for model, by_site in moves.accuracy.items()
        if by_site
    }
    name = taught_by(config["strategy"]["name"])
    bounds = {"local", "pooled", name} <= mean.keys()
    return {
        "strategy": config["strategy"]["name"],
        "task": config["task"]["name"],
        "seed": config["seed"],
        "clients": len(moves.sites.names),
        "rounds": (
            config["strategy"].get("rounds")
            or config["strategy"].get("crosslm", {}).get("rounds", 1)
        ),
        "status": status,
        "accuracy": mean,
        "accuracy_per_client": _by_site(moves.accuracy),
        "gap_closed": gap_closed(mean[name], mean["local"], mean["pooled"]) if bounds else None,
        "epsilon": {site: receipt.epsilon_total for site, receipt in moves.receipts.items()},
        "delta": {site: receipt.delta for site, receipt in moves.receipts.items()},
        "receipts": moves.receipts,
        **_steered(moves),
        **_answered(moves),
        "wire": _wire(events),
        "llm": dict(llm) | _usage(events),
        "curated": [entry for entry in events if entry["event"] in ("curated", "augmented")],
        "seconds": _seconds(events),
        "failures": _failures(events),
        "versions": (
            {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
        ),
    }


def taught_by(strategy: str) -> str:
    """The model that a strategy ends with, as it is named in `accuracy`."""
    return {"fdkt_crosslm": "crosslm"}.get(strategy, strategy)


def _steered(moves: Moves) -> dict[str, Any]:
    """What CrossLM adds: the LLM's accuracy (mean over sites) and general ability, before, after
    and of its baselines, and the rounds."""
    if not moves.llm:
        return {}
    accuracy = {
        when: float(np.mean(list(one["accuracy"].values())))
        for when, one in moves.llm.items()
        if one["accuracy"]
    }
    general = {when: one["general"] for when, one in moves.llm.items() if one["general"]}
    return {
        "feedback": moves.feedback,
        "llm_accuracy": accuracy,
        "llm_general": general,
        "curve": moves.curve,
    }


def _answered(moves: Moves) -> dict[str, Any]:
    """What G-Boost adds: for each method the share of right answers, and what a question took on
    the mean."""
    if not moves.answers:
        return {}
    totals = {}
    for name, by_site in moves.answers.items():
        counts = list(by_site.values())
        questions = max(1, sum(one.total for one in counts))
        each = (
            "llm_tokens",
            "slm_tokens",
            "reward_calls",
            "seconds",
            "requests",
            "degraded",
            "private_steps",
            "collaborative_steps",
        )
        means = {key: sum(getattr(one, key) for one in counts) / questions for key in each}
        totals[name] = {
            "accuracy": sum(one.right for one in counts) / questions,
            **means,
            "questions": sum(one.total for one in counts),
            "unanswered": sum(one.unanswered for one in counts),
            "bad_rewards": sum(one.bad_rewards for one in counts),
        }
    return {"answers": totals}


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
