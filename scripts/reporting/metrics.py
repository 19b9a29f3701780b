"""Figures beside accuracy, as a line for the terminal and a section of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from fedduet.scripts.reporting.html import table

WORDS = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC", "ece": "ECE"}


def said(summary: Mapping[str, Any]) -> str:
    """How tables call what a run compares by."""
    return WORDS[summary.get("metric", "accuracy")]


def line(summary: Mapping[str, Any], model: str) -> str:
    """One model's means over sites; "" where nothing but accuracy was measured."""
    found = summary.get("metrics", {}).get(model)
    if not found:
        return ""
    means = [
        f"{WORDS[key]} {found[key]:.3f}" for key in ("macro_f1", "auroc", "ece") if key in found
    ]
    return f"{model}: {', '.join(means)}"


def section(summaries: Sequence[Mapping[str, Any]], model: str, labels: Sequence[str]) -> str:
    """Means over sites and runs by method, recall by label, and the confusion of `model`; "" where
    nothing but accuracy was measured."""
    summaries = [one for one in summaries if one.get("metrics")]
    if not summaries:
        return ""
    methods = list(dict.fromkeys(name for one in summaries for name in one["metrics"]))
    keys = [key for key in WORDS if any(key in one for one in summaries[0]["metrics"].values())]
    names = labels or [f"label {i}" for i in range(len(summaries[0]["confusion"][methods[0]]))]
    lines = [["method", *(WORDS[key] for key in keys), *(f"recall of {name}" for name in names)]]
    for method in methods:
        of = [one["metrics"][method] for one in summaries if method in one["metrics"]]
        means = [_mean([one[key] for one in of if key in one]) for key in keys]
        confusion = _confusion(summaries, method)
        recalls = [
            _mean([row[i] / sum(row)]) if sum(row) else "-" for i, row in enumerate(confusion)
        ]
        lines.append([method, *means, *recalls])
    what = (
        "<p>Means over sites and runs. ECE is the mean gap between how sure a model was and how"
        " often it was right (15 bins; smaller is better). Recall is over all sites' test rows"
        " together. Only a simulation has these figures.</p>"
    )
    parts = [what, table(lines, "figures by method")]
    if model in methods:
        confusion = _confusion(summaries, model)
        taken = [["label", *(f"taken for {name}" for name in names)]]
        taken += [
            [name, *(f"{n:,}" for n in row)] for name, row in zip(names, confusion, strict=True)
        ]
        parts.append(f"<h3>What {escape(model)} took for what</h3>{table(taken, 'confusion')}")
    return "".join(parts)


def _confusion(summaries: Sequence[Mapping[str, Any]], model: str) -> list[list[int]]:
    found = [one["confusion"][model] for one in summaries if model in one["confusion"]]
    return np.sum(found, axis=0).tolist()


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "-"
