"""Small pieces of the strategies against numbers worked out by hand."""

import numpy as np
import pytest
from fedduet.strategies.baselines import weighted_mean
from fedduet.strategies.fdkt import FDKTConfig
from fedduet.strategies.run.moves import gap_closed
from fedduet.strategies.run.texts import concatenate, merge, shared_by_all
from fedduet.wire.messages import LabelledTexts


def test_weighted_mean_is_by_rows():
    parts = [
        {"w": np.array([1.0, 2.0], dtype=np.float32)},
        {"w": np.array([4.0, 8.0], dtype=np.float32)},
    ]
    mean = weighted_mean(parts, [1, 2])
    assert np.allclose(mean["w"], [3.0, 6.0]) and mean["w"].dtype == np.float32


def test_gap_closed():
    assert gap_closed(0.85, 0.8, 0.9) == pytest.approx(0.5)
    assert gap_closed(0.75, 0.8, 0.9) == pytest.approx(-0.5)
    assert gap_closed(0.85, 0.9, 0.9) is None


def test_rounds_add_up_and_partial_weights_are_dropped():
    first, second = (
        {"a": LabelledTexts(["x"], [0], [2.0])},
        {
            "a": LabelledTexts(["y"], [1]),
            "b": LabelledTexts(["z"], [1], [1.0]),
        },
    )
    merged = merge(first, second)
    # a weight for one of two would be read as wrong
    assert merged["a"] == LabelledTexts(["x", "y"], [0, 1])
    assert merged["b"] == LabelledTexts(["z"], [1], [1.0])
    assert concatenate([LabelledTexts(), LabelledTexts(["q"], [0], [3.0])]).weights == [3.0]


def test_sharing_with_all_names_the_domain():
    shared = shared_by_all(
        {"a": LabelledTexts(["x"], [0]), "b": LabelledTexts(["y"], [1])},
        {"a": "kitchen", "b": "books"},
    )
    assert shared["a"].texts == ["kitchen: x", "books: y"] and shared["a"] == shared["b"]


def test_baselines_are_switched_off_by_name_and_unknown_ones_are_errors():
    config = FDKTConfig(name="fdkt", baselines={"fedavg": False})
    assert not config.wants("fedavg") and config.wants("pooled")
    with pytest.raises(ValueError, match="unknown baseline fedprox"):
        FDKTConfig(name="fdkt", baselines={"fedprox": True})
