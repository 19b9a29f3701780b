"""How a site scores texts with a guarantee: its records vote, or a scorer that is private itself
judges (docs/privacy.md).

Both compare texts by a public embedding: words, or the SLM's public start, never a model that saw a
private record. Everything here is arithmetic on arrays; the vault charges and releases.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fedduet.clients.vault.config import ScorerEmbedding
from fedduet.lm.dp.discrete_gaussian import discrete_gaussian, variance_for
from fedduet.lm.dp.dpsgd import rows_of_units
from fedduet.lm.randomness import NoiseSource
from fedduet.lm.text.embed import Embedder, hashed_embeddings
from fedduet.lm.training.config import SLMConfig
from fedduet.tasks.builtin.standin import PREFIX, resolve

# [O] of the scorer: best or near it on public review domains and the world's public part
STEPS, LEARNING_RATE, CLIP = 5, 4.0, 0.5
LEAST_PART = 0.05  # [O] of a run's epsilon; with less left for scores they are refused
VOTE = 2**16  # whole numbers that one vote of norm 1 is made of [O]: noise is whole too
_BLOCK = 1024  # units whose votes are in memory at a time


def embed(
    texts: Sequence[str], kind: ScorerEmbedding, slm: SLMConfig, private: bool = False
) -> np.ndarray:
    """[n, d] float64 public embeddings of length 1: "slm" by the SLM's public start, "words" by
    hashed words. "auto" [O]: words for a built-in SLM, whose hidden states hardly tell sentiment.
    `private` rows are computed one at a time: in a batch the last bits of a row depend on its
    neighbours, and the guarantee wants each record's vector to be its own."""
    if kind == "words" or (kind == "auto" and slm.path.startswith(PREFIX)):
        return hashed_embeddings(texts).astype(np.float64)
    embedder = Embedder(resolve(slm.path), slm.max_tokens, slm.precision)
    return embedder.embed(texts, batch_size=1 if private else 64, phase="embed for scores").astype(
        np.float64
    )


@dataclass(frozen=True)
class View:
    """How embeddings are looked at, from public texts alone: rare features (of words; hidden states
    have none) weigh more, and directions count from the texts' mean `centre` [d], since otherwise
    all texts look alike. Both raised the scores' AUC on public data [O]."""

    weights: np.ndarray
    centre: np.ndarray

    @staticmethod
    def of(texts: np.ndarray) -> View:
        """The view of public embeddings [n, d]; weights are inverse document frequencies, ln((1 +
        n) / (1 + df)) + 1."""
        weights = np.log((1 + len(texts)) / (1 + np.count_nonzero(texts, axis=0))) + 1
        return View(weights, _unit(texts * weights).mean(axis=0))

    def directions(self, vectors: np.ndarray) -> np.ndarray:
        """[n, d] rows of length 1, or of 0 for what is at the centre."""
        return _unit(_unit(vectors * self.weights) - self.centre)


# --- Votes ----------------------------------------------------------------------------------------


def agreement(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """[a, b] of two label lists: 1 for the same label, -1 / (K - 1) for another."""
    return np.where(one[:, None] == other[None, :], 1.0, -1.0 / (classes - 1))


def votes(
    records: np.ndarray,
    record_labels: np.ndarray,
    texts: np.ndarray,
    labels: np.ndarray,
    classes: int,
) -> np.ndarray:
    """[m, n] what each record says of the n texts: cosine times agreement of labels, each row
    scaled to an L2 norm of 1 (or 0).

    A row is a function of its record and the public texts alone, so a sum of rows changes by at
    most 1 with a record more or less. A full vote for each [O]: rows that are only clipped carry
    less signal where texts are few.
    """
    return _unit((records @ texts.T) * agreement(record_labels, labels, classes))


def vote_sum(
    records: np.ndarray,
    record_labels: np.ndarray,
    texts: np.ndarray,
    labels: np.ndarray,
    classes: int,
    owners: Sequence[int],
) -> np.ndarray:
    """[n] int64 all units' votes together: the exact sum, of L2 sensitivity VOTE. It stays at the
    site until there is noise on it.

    Each unit's vote times VOTE is cut to whole numbers, towards 0, so it stays within a norm of
    VOTE, and a sum of whole numbers is the same in any order. `owners[i]` is the unit of record i:
    the record itself, or the user, whose one vote is that of all their records' votes together.
    """
    total, units = np.zeros(len(texts), dtype=np.int64), rows_of_units(owners)
    scale = VOTE * (1 - 2.0**-40)  # more than the last bits of a norm may be above 1
    for start in range(0, len(units), _BLOCK):
        block = units[start : start + _BLOCK]
        rows = np.concatenate(block)
        each = votes(records[rows], record_labels[rows], texts, labels, classes)
        of_units = _unit(np.add.reduceat(each, np.cumsum([0, *map(len, block[:-1])])))
        total += np.trunc(scale * of_units).astype(np.int64).sum(axis=0)
    return total


def noisy_votes(total: np.ndarray, sigma: float, randomness: NoiseSource) -> np.ndarray:
    """`total` [n] whole numbers of sensitivity VOTE plus discrete Gaussian noise, in votes: as
    private as N(0, sigma^2 I) on the votes (lm/dp/discrete_gaussian.py)."""
    noise = discrete_gaussian(len(total), variance_for(sigma * VOTE), randomness)
    return (total + noise) / VOTE


def noisy(total: np.ndarray, sigma: float, randomness: NoiseSource) -> np.ndarray:
    """`total` + N(0, sigma^2 I)."""
    return total + sigma * randomness.normal(total.size).numpy().astype(np.float64).reshape(
        total.shape
    )


def opinions(
    noisy_sum: np.ndarray,
    texts: np.ndarray,
    labels: np.ndarray,
    classes: int,
    sigma: float,
    units: int,
) -> np.ndarray:
    """[n] scores in [0, 1] from noisy votes; 0.5 is no opinion. Post-processing: texts, labels,
    sigma and the number of units are public.

    Votes for like texts are alike and their noise is not, so they are smoothed: H = G (G + lambda
    I)^-1 with G = cosines times agreement of the texts with each other, over n, and lambda =
    sigma^2 / units [O]. A score is Phi(smoothed vote / its noise's deviation).
    """
    count = len(noisy_sum)
    gram = (texts @ texts.T) * agreement(labels, labels, classes) / count
    shrink = sigma**2 / max(1, units)
    smooth = np.linalg.solve(gram + shrink * np.eye(count), gram)
    lengths = np.linalg.norm(smooth, axis=1)
    opinion = np.where(
        lengths > 1e-12, smooth @ noisy_sum / np.maximum(sigma * lengths, 1e-12), 0.0
    )
    return torch.special.ndtr(torch.from_numpy(opinion)).numpy()


# --- A private scorer -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scorer:
    """A linear softmax head [K, d] on embeddings in a public view."""

    head: np.ndarray
    view: View

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """[n, K] class probabilities of embeddings [n, d]."""
        return _softmax(self.view.directions(vectors) @ self.head.T)

    def to_bytes(self) -> bytes:
        """As an .npz file."""
        file = io.BytesIO()
        np.savez(file, head=self.head, weights=self.view.weights, centre=self.view.centre)
        return file.getvalue()

    @staticmethod
    def from_bytes(blob: bytes) -> Scorer:
        """The scorer that `to_bytes` wrote."""
        with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
            return Scorer(arrays["head"], View(arrays["weights"], arrays["centre"]))


def clipped_gradients(
    head: np.ndarray, features: np.ndarray, labels: np.ndarray, clip: float, owners: Sequence[int]
) -> np.ndarray:
    """[m, K] errors p - y of each record, scaled so that its unit's gradient, the mean of error
    times feature over its records, has an L2 norm of at most `clip`."""
    errors = _softmax(features @ head.T)
    errors[np.arange(len(labels)), labels] -= 1.0
    norms = np.linalg.norm(errors, axis=1) * np.linalg.norm(features, axis=1)
    for unit in rows_of_units(owners):
        if len(unit) > 1:
            errors[unit] /= len(unit)
            pairs = (errors[unit] @ errors[unit].T) * (features[unit] @ features[unit].T)
            norms[unit] = np.sqrt(max(0.0, pairs.sum()))
    return errors * np.minimum(1.0, clip / np.maximum(norms, 1e-12))[:, None]


def train_scorer(
    vectors: np.ndarray,
    labels: np.ndarray,
    owners: Sequence[int],
    view: View,
    classes: int,
    sigma: float,
    steps: int,
    randomness: NoiseSource,
) -> Scorer:
    """DP gradient descent from zero: each of `steps` steps takes all units' clipped gradients [K,
    d], adds N(0, (sigma CLIP)^2) to their sum, divides by the public number of units and goes
    LEARNING_RATE along. No bias [O]: on public data it cost more than it gave."""
    features = view.directions(vectors)
    head = np.zeros((classes, features.shape[1]))
    for _ in range(steps):
        total = clipped_gradients(head, features, labels, CLIP, owners).T @ features
        head -= LEARNING_RATE * noisy(total, sigma * CLIP, randomness) / len(set(owners))
    return Scorer(head, view)


def of_labels(probabilities: np.ndarray, labels: Sequence[int]) -> list[float]:
    """Each row's probability of its text's own label."""
    return as_scores(probabilities[np.arange(len(labels)), np.asarray(labels)])


def as_scores(values: np.ndarray) -> list[float]:
    """Plain numbers in [0, 1] of six digits: the low bits of floating-point noise do not leave."""
    return [round(float(value), 6) for value in np.clip(values, 0.0, 1.0)]


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(lengths > 1e-9, rows / np.maximum(lengths, 1e-9), 0.0)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
