"""Aggregation, checks and acceptance of the sites' scores, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from fedduet.strategies.crosslm import CrossLMConfig
from fedduet.strategies.fdkt import FDKTConfig
from fedduet.strategies.fdkt_crosslm import FDKTCrossLMConfig
from fedduet.strategies.scores import accept, aggregate, no_opinion, problem, split
from fedduet.wire.messages import LabelledTexts

TEXTS = {
    "b": LabelledTexts(["b0", "b1", "b2"], [0, 1, 1]),
    "a": LabelledTexts(["a0", "a1"], [0, 1]),
}


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.1, 0.9], ""),
        ([0.0, 1.0], ""),
        ([0.1], "1 scores for 2 texts"),
        ([0.1, math.nan], "score 1 is nan"),
        ([1.01, 0.5], "score 0 is 1.01"),
        ([0.5, -1e-9], "score 1 is -1e-09"),
        ([math.inf, 0.5], "score 0 is inf"),
    ],
)
def test_scores_that_cannot_be_right_are_named(scores, said):
    assert problem(scores, 2).startswith(said) and bool(problem(scores, 2)) == bool(said)


def test_aggregation():
    scores, rows = {"x": [0.0, 1.0], "y": [1.0, 1.0], "z": [0.2, 0.1]}, {"x": 10, "y": 30, "z": 60}
    assert aggregate(scores, rows, "uniform") == pytest.approx([0.4, 0.7])
    assert aggregate(scores, rows, "rows") == pytest.approx([0.42, 0.46])
    assert aggregate(scores, rows, "median") == pytest.approx([0.2, 1.0])


def test_one_liar_cannot_move_the_median():
    honest = {f"site{i}": [0.8, 0.2] for i in range(4)}
    assert aggregate(honest | {"liar": [0.0, 1.0]}, {}, "median") == pytest.approx([0.8, 0.2])


def test_rewards_go_back_to_the_site_they_were_written_for():
    assert split(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), TEXTS) == {
        "a": [0.1, 0.2],
        "b": [0.3, 0.4, 0.5],
    }


def test_accepted_texts_carry_their_reward_as_weight_and_short_labels_keep_their_best():
    accepted, short = accept(
        TEXTS, {"a": [0.9, 0.4], "b": [0.5, 0.2, 0.3]}, threshold=0.5, keep_at_least=1
    )
    assert accepted["a"] == LabelledTexts(["a0", "a1"], [0, 1], [0.9, 0.4])
    # 0.5 is accepted; of label 1 the best
    assert accepted["b"] == LabelledTexts(["b0", "b2"], [0, 1], [0.5, 0.3])
    assert [reason.split(":")[0] for reason in short] == ["a, label 1", "b, label 1"]
    accepted, short = accept(
        TEXTS, {"a": [0.9, 0.8], "b": [0.7, 0.6, 0.9]}, threshold=0.5, keep_at_least=2
    )
    # there are not more than one of label 0: nothing is missing
    assert len(accepted["b"]) == 3 and short == []


def test_no_opinion_is_chance_for_probabilities_and_a_half_for_votes():
    four = {"a": LabelledTexts(["w", "x", "y", "z"], [0, 1, 2, 3])}
    assert (
        no_opinion(four, "none") == no_opinion(four, "gaussian") == 0.25
        and no_opinion(four, "votes") == 0.5
    )
    assert no_opinion(TEXTS, "none") == 0.5


def test_a_text_kept_at_reward_0_still_counts_a_little():
    accepted, _ = accept(
        {"a": LabelledTexts(["x"], [0])}, {"a": [0.0]}, threshold=0.5, keep_at_least=1
    )
    assert accepted["a"].weights[0] > 0  # a set of weights 0 could not be learnt from


def test_fdkt_then_crosslm_measures_no_baseline_twice():
    parts = {"name": "fdkt_crosslm", "fdkt": FDKTConfig(name="fdkt")}
    once = dict.fromkeys(("zero_shot", "public", "fedavg", "pooled"), False)
    assert (
        FDKTCrossLMConfig(**parts, crosslm=CrossLMConfig(name="crosslm", baselines=once)).rounds
        == 3
    )
    with pytest.raises(ValueError, match="baselines of both: zero_shot, public, fedavg, pooled"):
        FDKTCrossLMConfig(**parts, crosslm=CrossLMConfig(name="crosslm"))
