"""Draws the next token of every row from its logits and its own uniform number."""

from __future__ import annotations

import torch

# top-p alone looks at this many likeliest tokens first and sorts the vocabulary only where they
# fall short [O]
HEAD = 512


def draw(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    top_k: int,
    top_p: torch.Tensor,
) -> torch.Tensor:
    """Token ids [B] for `logits` [B, V] float32, `uniform` [B] in [0, 1), `temperature` [B] > 0,
    `top_p` [B] in (0, 1].

    First the `top_k` likeliest tokens (0: all), renormalised, then the smallest set of them whose
    probabilities reach `top_p` (Holtzman et al. 2020, in the order Hugging Face applies the two).
    Inversion: the first token at which the cumulative weight reaches u times the total. Each row
    depends on its own numbers only.
    """
    vocabulary = logits.shape[1]
    if 0 < top_k < vocabulary:
        values, tokens = torch.topk(logits, top_k, dim=-1)
        return _pick(torch.softmax(values / temperature[:, None], dim=-1), tokens, uniform, top_p)
    scaled = logits / temperature[:, None]
    if bool((top_p >= 1).all()):
        return _invert(torch.softmax(scaled, dim=-1), uniform)
    values, tokens = torch.topk(scaled, min(HEAD, vocabulary), dim=-1)
    weights = torch.exp(values - torch.logsumexp(scaled, dim=-1, keepdim=True))
    drawn = _pick(weights, tokens, uniform, top_p)
    short = (weights.sum(dim=-1) < top_p).nonzero()[:, 0]
    if len(short) and vocabulary > HEAD:
        probabilities, order = torch.softmax(scaled[short], dim=-1).sort(dim=-1, descending=True)
        drawn[short] = _pick(probabilities, order, uniform[short], top_p[short])
    return drawn


def _pick(
    descending: torch.Tensor, tokens: torch.Tensor, uniform: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Draw from the nucleus of weights [B, K] sorted downwards: a token stays while those before it
    have not reached top_p."""
    before = descending.cumsum(dim=-1) - descending
    nucleus = descending.masked_fill(before >= top_p[:, None], 0.0)
    nucleus[:, 0] = descending[:, 0]
    return tokens.gather(1, _invert(nucleus, uniform)[:, None])[:, 0]


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """First index whose cumulative weight reaches u x total; the floor keeps u = 0 off tokens of
    weight zero."""
    cumulative = weights.cumsum(dim=-1)
    target = (uniform * cumulative[:, -1]).clamp_min(torch.finfo(weights.dtype).tiny)
    return torch.searchsorted(cumulative, target[:, None])[:, 0].clamp_max(weights.shape[1] - 1)


def uniforms(seed: int, count: int) -> torch.Tensor:
    """The random stream of one request: `count` float32 numbers in [0, 1), the i-th for its i-th
    new token."""
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    return torch.rand(count, generator=generator)
