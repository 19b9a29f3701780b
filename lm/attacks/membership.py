"""Attacks on released texts: who was a member (loss against a reference model, nearest neighbour),
and which words came out literally."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from fedduet.lm.models.batch import by_length, encode_document
from fedduet.lm.models.load import load_causal_lm, load_tokenizer
from fedduet.lm.text.embed import hashed_embeddings
from fedduet.lm.text.words import shingles, units
from fedduet.lm.training.causal import train_causal
from fedduet.lm.training.config import SLMConfig
from fedduet.lm.training.tune import answer_logprobs
from scipy import stats

# --- How well scores tell members from others -----------------------------------------------------


@dataclass(frozen=True)
class AUC:
    """The probability that a member's score is above another's, ties half, with its 95 % interval
    [low, high]."""

    value: float
    deviation: float
    members: int
    others: int

    @property
    def low(self) -> float:
        return max(0.0, self.value - 1.96 * self.deviation)

    @property
    def high(self) -> float:
        return min(1.0, self.value + 1.96 * self.deviation)


def auc(members: Sequence[float], others: Sequence[float]) -> AUC:
    """The area under the ROC curve and its standard deviation (Hanley and McNeil 1982, equation 2).
    Raises ValueError for no scores."""
    n, m = len(members), len(others)
    if not n or not m:
        raise ValueError(f"found {n} members and {m} others; allowed: at least 1 of each")
    ranks = stats.rankdata(np.concatenate([members, others]))
    area = float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
    one, two = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (one - area**2) + (m - 1) * (two - area**2)) / (n * m)
    return AUC(area, math.sqrt(max(0.0, variance)), n, m)


def mean_auc(found: Sequence[AUC]) -> AUC:
    """Of independent attacks (seeds): the mean area, its deviation, and how many members and others
    there were in all."""
    deviation = math.sqrt(sum(one.deviation**2 for one in found)) / len(found)
    value = sum(one.value for one in found) / len(found)
    return AUC(
        value, deviation, sum(one.members for one in found), sum(one.others for one in found)
    )


# --- Membership -----------------------------------------------------------------------------------


def losses(
    model: Any, tokenizer: Any, controls: Sequence[str], texts: Sequence[str], max_tokens: int
) -> np.ndarray:
    """[n] mean loss of each text's tokens after its control code, in nats; the end token counts as
    one of them."""
    rows = [
        encode_document(tokenizer, control, text, max_tokens)
        for control, text in zip(controls, texts, strict=True)
    ]
    out = np.zeros(len(rows))
    model.eval()
    with torch.no_grad():
        for chosen in by_length([len(row.ids) for row in rows], 64):
            logprobs, mask = answer_logprobs(
                model, [rows[i] for i in chosen], tokenizer.pad_token_id
            )
            out[chosen] = (
                (-(logprobs * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).double().numpy()
            )
    return out


def reference_scores(
    path: str,
    released: tuple[Sequence[str], Sequence[str]],
    candidates: tuple[Sequence[str], Sequence[str]],
    max_tokens: int,
    seed: int,
) -> np.ndarray:
    """[n] by how many nats a token each candidate is less surprising to a model that learned the
    released texts than to its public start.

    Both are (control codes, texts). The attacker fine-tunes every weight of the start at `path`, by
    values of our choice: what such a model says beyond its start comes from the release alone (a
    reference model: Carlini et al. 2022; on synthetic text: Meeus et al. 2025).
    """
    tokenizer = load_tokenizer(path, generates=True)
    model = load_causal_lm(path, tokenizer=tokenizer)
    before = losses(model, tokenizer, *candidates, max_tokens)
    setting = SLMConfig(
        path=path,
        learning_rate=1e-3,
        epochs=6,
        min_steps=0,
        max_steps=400,
        batch_size=16,
        max_tokens=max_tokens,
    )
    pairs = list(zip(*released, strict=True))
    model, _ = train_causal(
        model, tokenizer, pairs, setting, seed=seed, phase="attacker learns the released texts"
    )
    return before - losses(model, tokenizer, *candidates, max_tokens)


def nearest_scores(
    released: Sequence[str],
    released_labels: Sequence[int],
    texts: Sequence[str],
    labels: Sequence[int],
) -> np.ndarray:
    """[n] each text's highest cosine (hashed words and word pairs) with a released text of its
    label; -1 where there is none."""
    similar = hashed_embeddings(texts) @ hashed_embeddings(released).T
    same = np.asarray(labels)[:, None] == np.asarray(released_labels)[None, :]
    return np.where(same, similar, -1.0).max(axis=1, initial=-1.0).astype(np.float64)


# --- Literal copies -------------------------------------------------------------------------------


def longest_runs(texts: Sequence[str], private: Sequence[str]) -> list[int]:
    """For each text, how many words the longest run has that it shares with any one private text;
    case and punctuation do not count."""
    words = [units(text) for text in private]
    of_length: dict[int, set[tuple[str, ...]]] = {}

    def known(length: int) -> set[tuple[str, ...]]:
        if length not in of_length:
            of_length[length] = {
                run for own in words if len(own) >= length for run in shingles(own, length)
            }
        return of_length[length]

    # a shared run of a length has a shared one of each smaller length
    def shares(own: list[str], length: int) -> bool:
        return len(own) >= length and not known(length).isdisjoint(shingles(own, length))

    def longest(own: list[str]) -> int:
        return next(length for length in count(0) if not shares(own, length + 1))

    return [longest(units(text)) for text in texts]
