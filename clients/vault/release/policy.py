"""The site's policy: what a server may ask of this vault at all.

It is the site's file, read by code the site installed. Checks are plain functions that return
nothing or raise PolicyError with a reason for the person at the other end; no reason tells anything
about private records but the number of units (records, or users), which receipts state anyway and
which `records` means below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import pydantic
from fedduet.conf.check import Section
from fedduet.wire.messages import Answer, Evaluate, LabelledTexts, Learn, Score, Synthesize

_MOST_ROUNDS = 1000  # [O] a plan over more would keep the accountant busy for nothing

Method = Literal["synthesize", "score", "learn", "evaluate", "answer"]
Unit = Literal["record", "user"]


class PolicyError(Exception):
    """A request that the site's policy does not grant."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Policy(Section):
    """The `policy` section of a site. All defaults are our choice [O] and on the careful side."""

    methods: tuple[Method, ...] = ("synthesize", "score", "learn", "evaluate", "answer")
    """What the site answers at all."""
    unit: Unit = "record"
    """What an epsilon protects: each record, or all records of each user (task.user_column)."""
    epsilon_per_run: float = 8.0
    """The most that one run may spend."""
    epsilon_total: float = 8.0
    """The most over everything the site ever releases."""
    delta: float | None = None
    """null: min(1e-5, 1 / (10 n)) for n units."""
    allow_large_delta: bool = False
    """Accept delta >= 1 / n, which permits giving away a whole record."""
    minimum_records: int = 100
    """A site with fewer takes no part; where users are the unit it is they who count."""
    maximum_texts_per_release: int = 5000
    """Bounds work and memory: more texts cost no more epsilon; all sites score all texts of a
    round."""
    share_metrics: Literal["never", "private", "any"] = "never"
    """Test counts. private: with noise, charged, of models that saw no private record; any:
    also exact ones, which a real site's ledger holds as an unprotected release."""
    maximum_measurements: int = 200
    """Of test counts, ever."""
    maximum_trainings: int = 2000
    """Trainings that a server may ever ask for; they cost no epsilon."""
    maximum_rows_per_training: int = 100_000
    """Rows that may be sent with one training."""
    maximum_models: int = 500
    """Models that the site keeps."""
    maximum_disk_gib: float = pydantic.Field(50.0, gt=0)
    """GiB that these may take."""
    share_weights: bool = False
    """Whether weights may leave, which no epsilon covers."""
    share_scores: Literal["never", "private", "any"] = "never"
    """"private": only votes or gaussian; "any": also without a guarantee."""
    share_questions: Literal["never", "gateway_only"] = "never"
    """Whether questions, steps and the SLM's drafts go to the LLM: each time an unprotected
    release."""
    maximum_alpha: float = pydantic.Field(2.0, ge=0)
    """The most that a search may steer fusion: harder says more of the private SLM."""
    maximum_temperature: float = pydantic.Field(1.5, ge=0)
    """The most of a search: text drawn wilder says more of the private SLM."""
    maximum_tokens_per_question: int = 200_000
    """Tokens that may be drawn for one question."""
    allow_unprotected: bool = False
    """Releases without any guarantee."""
    approval: Literal["never", "each"] = "never"
    """each: texts, scores and weights wait for `fedduet-vault approve`."""
    approval_seconds: float = pydantic.Field(600.0, ge=0)
    """Seconds that a request waits for the person before it is told to come again."""

    @pydantic.field_validator("epsilon_per_run", "epsilon_total")
    @classmethod
    def _positive(cls, value: float) -> float:
        if not value > 0:
            raise ValueError(
                f"found {value}; allowed: above 0 (an epsilon of 0 releases nothing: take the"
                " method off `methods` instead)"
            )
        return value

    @pydantic.field_validator("delta")
    @classmethod
    def _probability(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < 1:
            raise ValueError(
                f"found {value}; allowed: above 0, below 1, or null for min(1e-5, 1 / (10 n))"
            )
        return value

    @pydantic.field_validator(
        "minimum_records",
        "maximum_texts_per_release",
        "maximum_measurements",
        "maximum_trainings",
        "maximum_rows_per_training",
        "maximum_models",
        "maximum_tokens_per_question",
    )
    @classmethod
    def _at_least_one(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"found {value}; allowed: at least 1")
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Policy:
        if self.epsilon_per_run > self.epsilon_total:
            raise ValueError(
                f"found epsilon_per_run {self.epsilon_per_run:g}; allowed: at most epsilon_total,"
                f" {self.epsilon_total:g}"
            )
        if math.isinf(self.epsilon_total) and not self.allow_unprotected:
            raise ValueError(
                "found an infinite epsilon_total; allowed: a finite one, or allow_unprotected: true"
            )
        return self


def delta_for(policy: Policy, records: int, asked: float | None = None) -> float:
    """The delta of this site's guarantees: its own, or `asked` if that is smaller. Null is
    min(1e-5, 1 / (10 n)) [O].

    Raises PolicyError for a delta of 1 / n or more, at which a mechanism may publish a whole
    record, unless `allow_large_delta`.
    """
    own = policy.delta if policy.delta is not None else min(1e-5, 1 / (10 * max(records, 1)))
    if asked is not None and not 0 < asked < 1:
        raise PolicyError(
            f"delta: found {asked!r}; allowed: above 0, below 1, or none for the site's own"
        )
    delta = own if asked is None else min(own, asked)
    if delta >= 1 / max(records, 1) and not policy.allow_large_delta:
        raise PolicyError(
            f"delta {delta:g} is not below 1 / n = {1 / max(records, 1):g} for the {records}"
            f" {policy.unit}s here, so a whole {policy.unit} could be given away; allowed: a"
            " smaller delta, or allow_large_delta in the site's policy"
        )
    return delta


def check_synthesize(policy: Policy, request: Synthesize, records: int, labels: int) -> None:
    """Raises PolicyError for synthetic texts, the same number for each of `labels` labels, that do
    not leave here."""
    _check_method(policy, "synthesize")
    _check_records(policy, records)
    check_epsilon(policy, request.epsilon)
    delta_for(policy, records, request.delta)
    _check_round(request)
    if request.per_label < 1:
        raise PolicyError(f"per_label: found {request.per_label}; allowed: at least 1")
    _check_size(
        policy,
        (request.per_label + request.extra) * labels,
        f"texts ({request.per_label + request.extra} for each of {labels} labels)",
    )


def check_learn(policy: Policy, request: Learn, records: int, arrays: bool = False) -> None:
    """Raises PolicyError for a training, for weights leaving after it, or for weights (`arrays`)
    that came with it, that this site does not grant."""
    _check_method(policy, "learn")
    if request.private:
        _check_records(policy, records)
    if len(request.data) > policy.maximum_rows_per_training:
        raise PolicyError(
            f"data: found {len(request.data)} rows; allowed: at most"
            f" {policy.maximum_rows_per_training} in one training (maximum_rows_per_training)"
        )
    if arrays and not policy.share_weights:
        raise PolicyError(
            "weights from outside do not enter this site: share_weights is false in its policy;"
            " allowed: the same request without arrays"
        )
    if request.share_weights:
        if not policy.share_weights:
            raise PolicyError(
                "weights do not leave this site; allowed: the same request with share_weights false"
            )
        if not policy.allow_unprotected:
            raise PolicyError(
                "weights trained without noise carry no privacy guarantee; they leave only if the"
                " site's policy sets allow_unprotected"
            )


def check_rows(data: LabelledTexts, labels: int) -> None:
    """Raises PolicyError for generated rows whose label is none of the `labels` of the task."""
    for row, label in enumerate(data.labels):
        if not 0 <= label < labels:
            raise PolicyError(f"data: row {row} has label {label}; allowed: 0 to {labels - 1}")


def check_trainings(policy: Policy, calls: int, models: int, gib: float) -> None:
    """Raises PolicyError after `calls` trainings, or where `models` kept ones, of `gib` GiB in all,
    leave no room for another."""
    for found, most, key in (
        (calls, policy.maximum_trainings, "maximum_trainings"),
        (models, policy.maximum_models, "maximum_models"),
        (gib, policy.maximum_disk_gib, "maximum_disk_gib"),
    ):
        if found >= most:
            raise PolicyError(f"no further training: this site allows {most:g} ({key})")


def check_evaluate(policy: Policy, request: Evaluate, made: int = 0) -> None:
    """Raises PolicyError where test counts do not leave, or not after the `made` measurements there
    were. A request with an epsilon asks for a noisy count, one without for the exact one."""
    _check_method(policy, "evaluate")
    check_measurement(
        policy, f"test counts of model {request.model!r}", made, exact=request.epsilon is None
    )
    if request.epsilon is not None:
        _check_round(request)
        if math.isinf(request.epsilon):
            raise PolicyError(
                f"epsilon: found inf for a noisy count; allowed: at most {policy.epsilon_per_run:g}"
            )
        check_epsilon(policy, request.epsilon)


def check_measurement(policy: Policy, what: str, made: int, exact: bool = True) -> None:
    """Raises PolicyError where counts do not leave, not `exact`, or not after the `made`
    measurements there were."""
    if policy.share_metrics == "never":
        raise PolicyError(f"{what} do not leave this site: share_metrics is never in its policy")
    if exact and policy.share_metrics != "any":
        raise PolicyError(
            f"exact {what} do not leave this site: share_metrics is private in its policy; allowed:"
            " Evaluate with an epsilon, of a model that saw no private record"
        )
    if made >= policy.maximum_measurements:
        most = policy.maximum_measurements
        raise PolicyError(
            f"{made} measurements left this site; allowed: at most {most} (maximum_measurements in"
            " its policy)"
        )


def check_score(policy: Policy, request: Score, records: int, labels: int) -> None:
    """Raises PolicyError for scores that do not leave here, or not under this kind of feedback, or
    of no texts of this task."""
    _check_method(policy, "score")
    if policy.share_scores == "never":
        raise PolicyError("scores do not leave this site: share_scores is never in its policy")
    if request.feedback == "none" and policy.share_scores != "any":
        raise PolicyError(
            "scores without a guarantee do not leave this site: share_scores is private in its"
            " policy; allowed: feedback votes or gaussian"
        )
    _check_records(policy, records)
    _check_round(request)
    delta_for(policy, records, request.delta)
    if request.feedback != "none":
        if math.isinf(request.epsilon):
            raise PolicyError(
                f"epsilon: found inf for feedback {request.feedback}; allowed: at most"
                f" {policy.epsilon_per_run:g}"
            )
        check_epsilon(policy, request.epsilon)
    if not len(request.data):
        raise PolicyError("data: found no texts to score; allowed: at least 1")
    _check_size(policy, len(request.data), "scores")
    check_rows(request.data, labels)


def check_search(policy: Policy, request: Answer, settings: Mapping[str, float]) -> None:
    """Raises PolicyError for a search that says more, or takes more, than this site allows.
    `settings`: of a search (`SearchConfig`), as plain values."""
    drawn = max(
        (settings["iterations"] * 2 * settings["children"] + settings["max_steps"])
        * settings["step_tokens"],
        request.samples * settings["solution_tokens"],
    )
    for name, found, most, key in (
        ("alpha", abs(settings["alpha"]), policy.maximum_alpha, "maximum_alpha"),
        (
            "temperature",
            settings["temperature"],
            policy.maximum_temperature,
            "maximum_temperature",
        ),
        ("tokens", drawn, policy.maximum_tokens_per_question, "maximum_tokens_per_question"),
    ):
        if not found <= most:  # nor what is no number
            raise PolicyError(f"search: found {name} {found:g}; allowed: at most {most:g} ({key})")


def check_answer(policy: Policy, through_gateway: bool) -> None:
    """Raises PolicyError where answering a question would show it, and the steps so far, to the LLM
    against the policy.

    `through_gateway`: the question goes to the LLM, by the gateway, the one way allowed under
    "gateway_only"; otherwise it stays here.
    """
    _check_method(policy, "answer")
    if through_gateway and policy.share_questions == "never":
        raise PolicyError(
            'questions do not leave this site: share_questions is "never" in its policy; allowed:'
            " answers by the site's own models"
        )


def granted_openly(policy: Policy) -> set[str]:
    """What may leave unprotected by a permission of its own, as ledgers name it."""
    return {
        name
        for name, granted in (
            ("scores", policy.share_scores == "any"),
            ("counts", policy.share_metrics == "any"),
            ("questions", policy.share_questions == "gateway_only"),
        )
        if granted
    }


def check_epsilon(policy: Policy, epsilon: float) -> None:
    """Raises PolicyError for an epsilon of a run that is not positive, too large, or infinite
    without leave."""
    if not epsilon > 0:
        raise PolicyError(
            f"epsilon: found {epsilon}; allowed: above 0, at most {policy.epsilon_per_run:g} for a"
            " run at this site"
        )
    if math.isinf(epsilon):
        if not policy.allow_unprotected:
            raise PolicyError(
                "epsilon: found inf, a release without a guarantee; allowed: at most "
                f"{policy.epsilon_per_run:g} for a run, unless the site's policy "
                "sets allow_unprotected"
            )
    elif epsilon > policy.epsilon_per_run:
        raise PolicyError(
            f"epsilon: found {epsilon:g} for the run; allowed: at most {policy.epsilon_per_run:g}"
            " at this site"
        )


def _check_method(policy: Policy, method: Method) -> None:
    if method not in policy.methods:
        raise PolicyError(
            f"method {method!r} is not allowed here; allowed: {', '.join(policy.methods) or 'none'}"
        )


def _check_round(request: Synthesize | Score | Evaluate) -> None:
    if not 1 <= request.rounds <= _MOST_ROUNDS or not 0 <= request.round < request.rounds:
        raise PolicyError(
            f"round: found {request.round} of {request.rounds}; allowed: 0 to rounds - 1, and 1 to"
            f" {_MOST_ROUNDS} rounds"
        )


def _check_records(policy: Policy, records: int) -> None:
    if records < policy.minimum_records:
        raise PolicyError(
            f"this site has {records} {policy.unit}s; allowed: at least {policy.minimum_records}"
            " (minimum_records in its policy)"
        )


def _check_size(policy: Policy, count: int, what: str) -> None:
    if count > policy.maximum_texts_per_release:
        raise PolicyError(
            f"asked for {count} {what}; allowed: at most {policy.maximum_texts_per_release} in one"
            " release"
        )
