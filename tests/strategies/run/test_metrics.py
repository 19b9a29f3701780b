"""Macro-F1, recall, calibration, ranking and confusion against scikit-learn and by hand, and which
figure is the headline."""

from __future__ import annotations

import numpy as np
import pytest
from fedduet.clients.vault.measured import auroc, detail
from fedduet.conf.check import ConfigError, check
from fedduet.strategies.run.metrics import METRICS, figures, headline, measured
from fedduet.tasks.config import TaskConfig
from sklearn import metrics as reference


def drawn(kinds, rows=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, kinds, rows)
    scores = rng.normal(size=(rows, kinds)).round(1)  # rounded, so that there are ties
    scores[np.arange(rows), labels] += 0.7
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return probabilities, labels


@pytest.mark.parametrize("kinds", [2, 5])
def test_figures_are_those_of_scikit_learn(kinds):
    probabilities, labels = drawn(kinds)
    taken = probabilities.argmax(axis=1)
    counts = detail(probabilities, labels.tolist())
    found = figures(counts)
    assert counts.confusion == reference.confusion_matrix(labels, taken).tolist()
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, taken, average="macro"))
    assert found["recall"] == pytest.approx(reference.recall_score(labels, taken, average=None))
    if kinds == 2:
        assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, probabilities[:, 1]))
    else:
        assert "auroc" not in found


def test_calibration_is_the_weighted_gap_of_bins():
    # four rows at 0.9, two of them right; two rows at 0.6, both right; bins of 1/15
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.4, 0.6]] * 2)
    counts = detail(probabilities, [0, 0, 1, 1, 1, 1])
    assert figures(counts)["ece"] == pytest.approx(4 / 6 * 0.4 + 2 / 6 * 0.4)
    assert sum(row[0] for row in counts.confidence) == 6 and counts.confidence[9][0] == 2


def test_a_label_that_nobody_has_is_no_number_in_recall_and_0_in_macro_f1():
    found = figures(detail(np.array([[0.8, 0.2], [0.7, 0.3]]), [0, 0]))
    assert found["recall"] == [1.0, None] and found["macro_f1"] == 0.5
    assert "auroc" not in found  # no pair to order
    assert auroc(np.array([0.5, 0.5, 0.5]), np.array([True, False, False])) == 0.5


def test_the_headline_takes_the_place_of_accuracy():
    probabilities, labels = drawn(2)
    details = {
        "local": {"a": detail(probabilities, labels.tolist())},
        "fdkt": {"a": detail(probabilities[:50], labels[:50].tolist())},
    }
    summary = {
        "accuracy": {"local": 0.9, "fdkt": 0.8},
        "accuracy_per_client": {"a": {"local": 0.9, "fdkt": 0.8}},
    }
    assert headline(summary) == summary
    for metric in METRICS[1:]:
        full = summary | measured(details, metric)
        seen = headline(full)
        for model in ("local", "fdkt"):
            assert seen["accuracy"][model] == full["metrics"][model][metric]
            assert seen["accuracy_per_client"]["a"][model] == figures(details[model]["a"])[metric]
    assert measured({"local": {}}, "macro_f1") == {}  # real sites give none: accuracy stays


def test_ranking_needs_two_labels():
    section = {"name": "t", "path": "f.csv", "metric": "auroc", "labels": ["a", "b", "c"]}
    with pytest.raises(ConfigError, match="metric: found 'auroc' with 3 labels"):
        check(TaskConfig, section, "task")
