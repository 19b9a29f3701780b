"""Figures beside accuracy, from the counts of a simulation's sites, and which of them is a run's
headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from fedduet.tasks.config import Metric
from fedduet.wire.messages import Detail

METRICS = get_args(Metric)  # what a headline may be: higher is better


def figures(detail: Detail) -> dict[str, Any]:
    """`recall` by label, `macro_f1` (mean over labels, 0 for one that is neither there nor said),
    `ece` (expected calibration error: the mean gap between confidence and share right, by bin,
    weighted by rows; Guo et al. 2017), and of two labels `auroc`. NaN where nothing is measured."""
    confusion, bins = np.array(detail.confusion), np.array(detail.confidence)
    right, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        recall = right / true
    f1 = 2 * right / np.maximum(true + said, 1)
    found: dict[str, Any] = {
        "macro_f1": float(f1.mean()),
        "recall": [None if np.isnan(one) else float(one) for one in recall],
        "ece": float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(1.0, bins[:, 0].sum())),
    }
    return found if detail.auroc is None else found | {"auroc": detail.auroc}


def measured(details: Mapping[str, Mapping[str, Detail]], metric: str) -> dict[str, Any]:
    """What summary.json says of `details` by model and site: figures by site, their means, the
    confusion of all sites together, and the headline; nothing without details."""
    details = {model: by_site for model, by_site in details.items() if by_site}
    if not details:
        return {}
    by_site = {
        model: {site: figures(one) for site, one in sites.items()}
        for model, sites in details.items()
    }
    means = {
        model: {
            key: float(np.mean(values))
            for key in ("macro_f1", "auroc", "ece")
            if (values := [one[key] for one in sites.values() if key in one])
        }
        for model, sites in by_site.items()
    }
    confusion = {
        model: np.sum([one.confusion for one in sites.values()], axis=0).tolist()
        for model, sites in details.items()
    }
    return {
        "metric": metric,
        "metrics": means,
        "metrics_per_client": by_site,
        "confusion": confusion,
    }


def headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with its headline metric in the place of accuracy (in `accuracy` and
    `accuracy_per_client`); as it is where that is accuracy, or was not measured."""
    metric = summary.get("metric", "accuracy")
    if metric == "accuracy":
        return dict(summary)
    of = {
        model: {site: one[metric] for site, one in sites.items() if metric in one}
        for model, sites in summary["metrics_per_client"].items()
    }
    by_site = {
        site: {model: sites[site] for model, sites in of.items() if site in sites}
        for site in summary["accuracy_per_client"]
    }
    mean = {model: float(np.mean(list(sites.values()))) for model, sites in of.items() if sites}
    return dict(summary) | {"accuracy": mean, "accuracy_per_client": by_site}
