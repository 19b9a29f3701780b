"""Auditing in one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846): a lower bound on
epsilon from guesses about canaries.

Every canary is in or out of the training by a fair coin of its own. From what a mechanism shows, a
score is made for each canary; the highest are guessed "in", the lowest "out", the rest is not
guessed. How many guesses are right bounds epsilon from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fedduet.lm.dp.accounting import Event, compose
from fedduet.lm.dp.clipped_sums import ClippedSum, Engine, LossBatch, vmap_engine
from fedduet.lm.models.batch import Encoded
from fedduet.lm.models.load import trainable
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Audit:
    """`epsilon`: with probability `confidence` no mechanism of a smaller epsilon would have been
    guessed so well. `right` of `guesses`.

    `by_curve`: the same among mechanisms of the claimed kind, which may have another noise than is
    claimed; see `audit_apart`.
    """

    epsilon: float
    guesses: int
    right: int
    canaries: int
    confidence: float = CONFIDENCE
    by_curve: float | None = None


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """At most how likely `right` or more right guesses are for an (epsilon, delta)-DP mechanism
    (the paper's Theorem 5.2).

    Raises ValueError unless 0 <= right <= guesses <= canaries.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(
            f"found {right} right of {guesses} guesses about {canaries} canaries; allowed: right <="
            " guesses <= canaries"
        )
    chance = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(right - 1, guesses, chance))
    # P[right - i <= X < right]
    below = np.cumsum(stats.binom.pmf(right - np.arange(1, right + 1), guesses, chance))
    alpha = float((below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that the guesses reject, 0.0 when they reject none; to 0.001 from
    below."""
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, right, high, delta) < 1 - confidence:
        high *= 2
        if high > 1000:
            return high
    while high - low > 1e-3:
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def audit(
    scores: Sequence[float], included: Sequence[bool], delta: float, confidence: float = CONFIDENCE
) -> Audit:
    """The best bound over several numbers of guesses, half of each kind. [n] scores, higher for
    "in".

    The numbers tried are n / 16, n / 8, n / 4, n / 2 and n; the confidence is divided by how many
    there are (union bound).
    """
    n = len(scores)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    was = np.asarray(included, dtype=bool)
    best = Audit(0.0, 0, 0, n, confidence)
    tried = sorted({max(2, n // part) // 2 * 2 for part in (16, 8, 4, 2, 1)})
    for guesses in tried:
        half = guesses // 2
        right = int(was[order[:half]].sum() + (~was[order[n - half :]]).sum())
        bound = lower_bound(n, guesses, right, delta, 1 - (1 - confidence) / len(tried))
        if bound > best.epsilon or best.guesses == 0:
            best = Audit(bound, guesses, right, n, confidence)
    return best


def audit_apart(
    scores: Sequence[float],
    included: Sequence[bool],
    delta: float,
    mechanism: Callable[[float], Event],
    confidence: float = CONFIDENCE,
) -> Audit:
    """The bounds for canaries of which each shows on a score of its own, with noise of its own:
    worst cases only.

    Every canary is then a trial of one experiment: of those in, a share p has scores beyond a
    threshold, of those out a share q, and (epsilon, delta) means p <= e^epsilon q + delta. Half of
    the canaries choose the threshold, the others give Clopper-Pearson bounds of p and q (Nasr et
    al. 2021). `by_curve` asks more of the claim: `mechanism(sigma)` is what the accountant knows,
    and all its pairs of epsilon and delta must hold (Nasr et al. 2023): too little noise then shows
    in the middle of the scores, not in their tails only.
    """
    values, was = np.asarray(scores, dtype=np.float64), np.asarray(included, dtype=bool)
    first = np.arange(len(values)) % 2 == 0
    if len({*was[first]}) < 2 or len({*was[~first]}) < 2:
        return Audit(0.0, 0, 0, len(values), confidence, 0.0)
    tails = [(values, was), (-values, ~was)]
    shares = np.unique(np.geomspace(8 / max(9, len(values)), 0.9, 32))
    options = [
        (on_progress, score, float(np.quantile(score[first], 1 - share)))
        for score, on_progress in tails
        for share in shares
    ]

    def rates(
        option: tuple[np.ndarray, np.ndarray, float], part: np.ndarray
    ) -> tuple[float, float, int, int]:
        on_progress, score, threshold = option
        beyond, on_progress = score[part] >= threshold, on_progress[part]
        right, wrong = int((beyond & on_progress).sum()), int((beyond & ~on_progress).sum())
        return (
            *_clopper_pearson(
                right, int(on_progress.sum()), wrong, int((~on_progress).sum()), confidence
            ),
            right,
            wrong,
        )

    def plain(low: float, high: float) -> float:
        return max(0.0, math.log((low - delta) / high)) if low > delta else 0.0

    def distance(low: float, high: float) -> float:
        return float(stats.norm.ppf(low) - stats.norm.ppf(high)) if low > 0 else -math.inf

    low, high, right, wrong = rates(
        max(options, key=lambda option: plain(*rates(option, first)[:2])), ~first
    )
    middle = rates(max(options, key=lambda option: distance(*rates(option, first)[:2])), ~first)
    return Audit(
        plain(low, high),
        right + wrong,
        right,
        len(values),
        confidence,
        _by_curve(*middle[:2], delta, mechanism),
    )


def _clopper_pearson(
    right: int, ins: int, wrong: int, outs: int, confidence: float
) -> tuple[float, float]:
    """(at least this share of `ins`, at most this share of `outs`), both together with
    `confidence`."""
    low = stats.beta.ppf((1 - confidence) / 2, right, ins - right + 1) if right else 0.0
    high = stats.beta.ppf((1 + confidence) / 2, wrong + 1, outs - wrong) if wrong < outs else 1.0
    return float(low), float(high)


def _by_curve(low: float, high: float, delta: float, mechanism: Callable[[float], Event]) -> float:
    """Epsilon at `delta` of the least noise that these shares are at odds with; 0.0 when they fit a
    deviation of 200, too."""
    deltas = np.geomspace(1e-6, 0.95, 24).tolist()

    def at_odds(sigma: float) -> bool:
        return any(
            low > math.exp(min(700.0, compose([mechanism(sigma)], one))) * high + one
            for one in deltas
        )

    least, most = 0.05, 200.0
    if not at_odds(most):
        return 0.0
    while most / least > 1.005:
        middle = math.sqrt(least * most)
        least, most = (least, middle) if at_odds(middle) else (middle, most)
    return compose([mechanism(most)], delta)


class GradientWatcher:
    """White box: estimates from what every step shows which canaries were in its batch. Give it to
    `train_generator` as `watch`.

    A step shows y = sum_i b_i g_i + noise, g_i the canaries' clipped gradients, which the auditor
    can compute, b_i whether canary i was drawn. The scores [n] add up the linear least-squares
    estimates of all b_i (Gaussian noise of deviation `noise` on every coordinate, independent b_i
    of mean `rate` / 2). Memory: n x trainable parameters float32. `every`: only each so-manieth
    step is looked at.
    """

    def __init__(
        self,
        model: Any,
        batch: LossBatch,
        clip: float,
        noise: float,
        rate: float,
        expected: float,
        every: int = 1,
        rows: int = 64,
    ) -> None:
        self._model, self._batch, self._clip, self._every, self._rows = (
            model,
            batch,
            clip,
            every,
            rows,
        )
        self._mean, self._scale = rate / 2, expected
        self._ridge = max(noise**2, 1e-6 * clip**2) / (self._mean * (1 - self._mean))
        self.scores = np.zeros(len(batch.ids))

    def __call__(self, step: int, noisy: dict[str, torch.Tensor]) -> None:
        """After a step's noisy mean is made and before the weights change. `noisy`: by parameter,
        what `.grad` holds."""
        if step % self._every:
            return
        own = _Rows(self._clip)
        with vmap_engine(self._model, False) as add:
            for start in range(0, len(self.scores), self._rows):
                part = slice(start, start + self._rows)
                add(LossBatch(self._batch.ids[part], self._batch.weights[part]), own)
        gradients = torch.cat(own.rows)
        shown = torch.cat(
            [noisy[name].float().flatten() for name in own.names]
        ) * self._scale - self._mean * gradients.sum(dim=0)
        system = (gradients @ gradients.T).double()
        system.diagonal().add_(self._ridge)
        self.scores += torch.linalg.solve(system, (gradients @ shown).double()).numpy()


class DiracCanaries:
    """Worst case: canary i's gradient is one coordinate of its own, ten times the clipping norm
    long, so that nothing hides it.

    A canary is a unit of privacy: a row, or, with `owners` (row i is of canary owners[i]), a user's
    rows, each of that gradient. `engine` goes to `train_generator`, whose sampler, clipping and
    noise are what is audited; the object itself is its `watch`. `rows` are the encoded training
    rows of all canaries, in their order. `scores` [n]: log-likelihood ratios of in against out, the
    best test of all: over the steps, sum of log(1 - q + q e^((2 y - 1) / (2 sigma^2))), y what a
    step shows on the canary's coordinate in units of `clip`, q the sample `rate`. `sigma` is the
    planned noise multiplier (at least 0.05 is used), `expected` the expected batch size.
    """

    def __init__(
        self,
        model: Any,
        rows: Sequence[Encoded],
        clip: float,
        sigma: float,
        rate: float,
        expected: float,
        owners: Sequence[int] | None = None,
    ) -> None:
        self._numbers = {
            tuple(row.ids): owner
            for row, owner in zip(rows, owners or range(len(rows)), strict=True)
        }
        canaries = 1 + max(self._numbers.values())
        self._names = list(trainable(model))
        self._places = [
            (name, place)
            for name, parameter in trainable(model).items()
            for place in range(parameter.numel())
        ][:canaries]
        if canaries > len(self._places):
            raise ValueError(
                f"found {canaries} canaries; this model has room for {len(self._places)}"
            )
        self._length, self._scale, self._variance, self._rate = (
            10 * clip,
            expected / clip,
            max(sigma, 0.05) ** 2,
            rate,
        )
        self.scores = np.zeros(canaries)

    @contextmanager
    def engine(self, model: Any, autocast: bool) -> Iterator[Engine]:
        parameters = trainable(model)

        def add(batch: LossBatch, total: ClippedSum) -> None:
            gradients = {
                name: torch.zeros(batch.units, *parameter.shape)
                for name, parameter in parameters.items()
            }
            for place, (ids, weights) in enumerate(
                zip(batch.ids.tolist(), batch.weights, strict=True)
            ):
                if learned := int((weights > 0).sum()):  # none: it fills its unit up
                    name, coordinate = self._places[self._numbers[tuple(ids[: learned + 1])]]
                    gradients[name][place // batch.group].view(-1)[coordinate] += (
                        self._length * float(weights.sum())
                    )
            total.add(gradients)

        yield add

    def __call__(self, step: int, noisy: dict[str, torch.Tensor]) -> None:
        shown = (
            torch.cat([noisy[name].flatten() for name in self._names])[: len(self.scores)]
            .double()
            .numpy()
            * self._scale
        )
        with np.errstate(divide="ignore"):  # log(1 - q) of a rate of 1
            self.scores += np.logaddexp(
                np.log1p(-self._rate), np.log(self._rate) + (2 * shown - 1) / (2 * self._variance)
            )


class _Rows:
    """Stands where an engine wants a ClippedSum, and keeps the clipped rows apart."""

    def __init__(self, clip: float) -> None:
        self.clip, self.rows, self.names = clip, [], []

    def add(self, gradients: dict[str, torch.Tensor]) -> None:
        self.names = list(gradients)
        rows = torch.cat([gradient.float().flatten(1) for gradient in gradients.values()], dim=1)
        self.rows.append(
            rows * (self.clip / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        )
