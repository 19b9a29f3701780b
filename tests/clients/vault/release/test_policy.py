"""What a site grants and what it refuses, each refusal with what was found and what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from fedduet.clients.vault.release.policy import (
    Policy,
    PolicyError,
    check_answer,
    check_evaluate,
    check_learn,
    check_score,
    check_search,
    check_synthesize,
    check_trainings,
    delta_for,
)
from fedduet.conf.check import ConfigError, check
from fedduet.wire.messages import Answer, Evaluate, LabelledTexts, Learn, Score, Synthesize

N = 1000


def request(**changes) -> Synthesize:
    return Synthesize(
        **{
            "message_id": "m",
            "run": "r",
            "round": 0,
            "rounds": 1,
            "per_label": 20,
            "epsilon": 8.0,
            **changes,
        }
    )


def scores(texts=10, **changes) -> Score:
    data = LabelledTexts(["a"] * texts, [0] * texts)
    return Score(
        **{
            "message_id": "m",
            "run": "r",
            "model": "local",
            "data": data,
            "epsilon": 8.0,
            "feedback": "votes",
            **changes,
        }
    )


def refusal(function, *arguments) -> str:
    with pytest.raises(PolicyError) as refused:
        function(*arguments)
    assert refused.value.reason == str(refused.value)
    return refused.value.reason


def test_defaults_grant_a_plain_run():
    policy = Policy()
    check_synthesize(policy, request(), N, labels=2)
    check_learn(policy, Learn("m", "r", "fdkt"), N)
    assert "share_metrics is never" in refusal(check_evaluate, policy, Evaluate("m", "r", "fdkt"))
    check_answer(policy, through_gateway=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 0.0}, "epsilon: found 0.0; allowed: above 0, at most 8"),
        ({"epsilon": -1.0}, "epsilon: found -1.0; allowed: above 0"),
        ({"epsilon": math.nan}, "epsilon: found nan; allowed: above 0"),
        ({"epsilon": 8.5}, "epsilon: found 8.5 for the run; allowed: at most 8"),
        (
            {"epsilon": math.inf},
            "found inf, a release without a guarantee; allowed: at most 8 for a run, unless",
        ),
        ({"per_label": 0}, "per_label: found 0"),
        (
            {"per_label": 2501},
            "asked for 5002 texts (2501 for each of 2 labels); allowed: at most 5000",
        ),
        ({"round": 1}, "round: found 1 of 1"),
        ({"round": -1}, "round: found -1 of 1"),
        ({"rounds": 0}, "round: found 0 of 0"),
        ({"delta": 0.0}, "delta: found 0.0"),
        ({"delta": math.nan}, "delta: found nan"),
    ],
)
def test_synthesize_refusals(changes, words):
    assert words in refusal(check_synthesize, Policy(), request(**changes), N, 2)


def test_the_largest_release_and_epsilon_pass():
    check_synthesize(Policy(), request(per_label=2500), N, 2)
    check_synthesize(Policy(minimum_records=N), request(), N, 2)
    assert "has 999 records; allowed: at least 1000" in refusal(
        check_synthesize, Policy(minimum_records=N), request(), N - 1, 2
    )


def test_an_infinite_epsilon_needs_leave():
    check_synthesize(Policy(allow_unprotected=True), request(epsilon=math.inf), N, 2)


def test_delta_default_and_the_smaller_of_two():
    assert delta_for(Policy(), 1000) == 1e-5
    assert delta_for(Policy(), 50_000) == 2e-6  # 1 / (10 n)
    assert delta_for(Policy(delta=1e-6), 1000) == 1e-6
    assert delta_for(Policy(), 1000, asked=1e-7) == 1e-7
    assert delta_for(Policy(), 1000, asked=1e-3) == 1e-5  # what holds at 1e-5 holds at 1e-3


def test_a_delta_of_one_over_n_needs_leave():
    assert delta_for(Policy(delta=9e-4), 1000) == 9e-4
    reason = refusal(delta_for, Policy(delta=1e-3), 1000)
    assert (
        "delta 0.001 is not below 1 / n = 0.001 for the 1000 records here" in reason
        and "allow_large_delta" in reason
    )
    assert delta_for(Policy(delta=1e-3, allow_large_delta=True), 1000) == 1e-3
    assert "1 / n" in refusal(check_synthesize, Policy(delta=1e-2), request(), N, 2)


def test_methods_that_are_not_listed():
    none = Policy(methods=(), share_scores="any", share_questions="gateway_only")
    for name, function, arguments in (
        ("synthesize", check_synthesize, (request(), N, 2)),
        ("learn", check_learn, (Learn("m", "r", "fdkt"), N)),
        ("evaluate", check_evaluate, (Evaluate("m", "r", "fdkt"),)),
        ("score", check_score, (scores(), N, 2)),
        ("answer", check_answer, (False,)),
    ):
        assert (
            refusal(function, none, *arguments)
            == f"method '{name}' is not allowed here; allowed: none"
        )


def test_what_is_shared():
    weights = Learn("m", "r", "fedavg", share_weights=True)
    assert "weights do not leave" in refusal(check_learn, Policy(), weights, N)
    assert "no privacy guarantee" in refusal(check_learn, Policy(share_weights=True), weights, N)
    check_learn(Policy(share_weights=True, allow_unprotected=True), weights, N)
    assert "has 5 records" in refusal(check_learn, Policy(), Learn("m", "r", "fdkt"), 5)
    check_learn(Policy(), Learn("m", "r", "fdkt", private=False), 5)
    exact, noisy = Evaluate("m", "r", "fdkt"), Evaluate("m", "r", "fdkt", epsilon=1.0)
    assert "exact test counts" in refusal(check_evaluate, Policy(share_metrics="private"), exact)
    check_evaluate(Policy(share_metrics="private"), noisy)
    check_evaluate(Policy(share_metrics="any"), exact)
    for unfit in ({"epsilon": math.inf}, {"epsilon": 9.0}, {"round": 1}, {"epsilon": math.nan}):
        assert "allowed" in refusal(
            check_evaluate, Policy(share_metrics="private"), replace(noisy, **unfit)
        )
    assert "weights from outside" in refusal(check_learn, Policy(), Learn("m", "r", "x"), N, True)
    check_learn(Policy(share_weights=True), Learn("m", "r", "x"), N, True)


def test_trainings_and_searches_are_bounded():
    rows = Learn("m", "r", "x", LabelledTexts(["a"] * 3, [0] * 3))
    assert "found 3 rows; allowed: at most 2" in refusal(
        check_learn, Policy(maximum_rows_per_training=2), rows, N
    )
    few = Policy(maximum_trainings=5, maximum_models=4, maximum_disk_gib=1.0)
    check_trainings(few, 4, 3, 0.9)
    for found, key in (((5, 3, 0.9), "trainings"), ((4, 4, 0.9), "models"), ((4, 3, 1.0), "disk")):
        assert f"maximum_{key}" in refusal(check_trainings, few, *found)
    settings = {
        "alpha": -2.0,
        "temperature": 1.5,
        "iterations": 10,
        "children": 2,
        "max_steps": 5,
        "step_tokens": 8,
        "solution_tokens": 64,
    }  # (10 * 4 + 5) * 8 = 360 tokens by searching, 320 by sampling
    answer = Answer("m", "r", "x", "search", samples=5)
    check_search(Policy(maximum_tokens_per_question=360), answer, settings)
    for changes, name in (
        ({"alpha": 2.1}, "alpha 2.1"),
        ({"alpha": -1e4}, "alpha 10000"),
        ({"alpha": math.nan}, "alpha nan"),
        ({"temperature": 1.6}, "temperature 1.6"),
        ({"max_steps": 6}, "tokens 368"),
        ({"solution_tokens": 73}, "tokens 365"),
    ):
        assert f"found {name}; allowed: at most" in refusal(
            check_search, Policy(maximum_tokens_per_question=360), answer, settings | changes
        )


def test_what_scores_and_questions_are_shared():
    for kind in ("none", "votes", "gaussian"):
        assert "share_scores is never" in refusal(
            check_score, Policy(), scores(feedback=kind), N, 2
        )
        check_score(Policy(share_scores="any"), scores(feedback=kind), N, 2)
    private = Policy(share_scores="private")
    assert "without a guarantee" in refusal(check_score, private, scores(feedback="none"), N, 2)
    check_score(private, scores(feedback="gaussian"), N, 2)
    # of no account there
    check_score(Policy(share_scores="any"), scores(feedback="none", epsilon=math.inf), N, 2)
    assert "found inf" in refusal(check_score, private, scores(epsilon=math.inf), N, 2)
    assert "has 5 records" in refusal(check_score, private, scores(), 5, 2)
    check_score(private, scores(5000), N, 2)
    assert "5001 scores; allowed: at most 5000" in refusal(check_score, private, scores(5001), N, 2)
    assert "label 0; allowed: 0 to -1" in refusal(check_score, private, scores(), N, 0)
    assert 'share_questions is "never"' in refusal(check_answer, Policy(), True)
    check_answer(Policy(share_questions="gateway_only"), through_gateway=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epsilon_per_run": 0}, r"policy\.epsilon_per_run: found 0.*; allowed: above 0"),
        ({"epsilon_total": -2}, r"policy\.epsilon_total: found -2"),
        (
            {"epsilon_per_run": 9.0},
            r"policy: found epsilon_per_run 9; allowed: at most epsilon_total, 8",
        ),
        ({"epsilon_total": math.inf}, "infinite epsilon_total"),
        ({"delta": 1.0}, r"policy\.delta: found 1\.0; allowed: above 0, below 1"),
        ({"minimum_records": 0}, r"policy\.minimum_records: found 0"),
        ({"share_scores": "votes"}, r"policy\.share_scores: found 'votes'.*'never'"),
        ({"methods": ["synthesise"]}, r"policy\.methods\.0: found 'synthesise'.*'synthesize'"),
        ({"share_questions": "always"}, r"policy\.share_questions: found 'always'"),
        ({"epsilon_run": 1.0}, r"policy\.epsilon_run: unknown key; did you mean epsilon_per_run"),
    ],
)
def test_policies_that_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words):
        check(Policy, values, "policy")
