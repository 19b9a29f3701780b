"""What the generator's tuning minimises, as plain functions of log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

SMALL = 1e-4  # e of the advantage; rewards are in [0, 1] [O]


def group_advantages(rewards: Sequence[float], groups: Sequence[str]) -> torch.Tensor:
    """[n]: R = (r - mean) / (std + e) within each text's group (GRPO, Shao et al. 2024, arXiv
    2402.03300); 0 where all are equal."""
    values, out = torch.tensor(list(rewards), dtype=torch.float32), torch.zeros(len(rewards))
    for group in dict.fromkeys(groups):
        places = [place for place, name in enumerate(groups) if name == group]
        part = values[places]
        if float(part.max() - part.min()) > 1e-6:
            out[places] = (part - part.mean()) / (part.std(correction=0) + SMALL)
    return out


def kl_estimate(new: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Of KL(new || base) from log-probabilities of tokens drawn from `new`: exp(d) - d - 1, d =
    base - new. Never negative (k3)."""
    difference = base - new
    return torch.exp(difference) - difference - 1


def policy_gradient_loss(
    new: torch.Tensor,
    old: torch.Tensor,
    base: torch.Tensor,
    mask: torch.Tensor,
    advantages: torch.Tensor,
    clip: float,
    kl_weight: float,
) -> torch.Tensor:
    """GRPO's: -min(ratio A, clip(ratio) A) + kl_weight * KL to the base, mean over a text's tokens,
    then over texts.

    `new`, `old`, `base` and `mask` [B, T]: log-probabilities of the tokens under the policy, under
    the one that wrote them and under the untuned LLM, and 1 where a token was the policy's choice.
    `advantages` [B].
    """
    ratio = torch.exp(new - old)
    gain = torch.minimum(
        ratio * advantages[:, None], ratio.clamp(1 - clip, 1 + clip) * advantages[:, None]
    )
    return mean_of_texts(kl_weight * kl_estimate(new, base) - gain, mask)


def mean_of_texts(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over each row's masked places, then over rows. [B, T] -> scalar."""
    return ((values * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)).mean()


def dpo_loss(
    better: torch.Tensor,
    worse: torch.Tensor,
    base_better: torch.Tensor,
    base_worse: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7): -log sigmoid(beta *
    difference of log-ratios). All [P], summed over a text's tokens."""
    return -functional.logsigmoid(beta * ((better - base_better) - (worse - base_worse))).mean()


def preference_pairs(rewards: Sequence[float], groups: Sequence[str]) -> list[tuple[int, int]]:
    """(better, worse) within each group: the best with the worst, the second best with the second
    worst, ...; no pair of equal ones."""
    pairs = []
    for group in dict.fromkeys(groups):
        order = sorted(
            (place for place, name in enumerate(groups) if name == group),
            key=lambda place: -rewards[place],
        )
        pairs += [
            (a, b)
            for a, b in zip(order, reversed(order), strict=True)
            if rewards[a] > rewards[b] + 1e-6
        ]
    return pairs
