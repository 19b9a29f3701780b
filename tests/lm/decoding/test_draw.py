"""Drawing tokens: exact probabilities against brute force, and independence of the rows."""

import fedduet.lm.decoding.draw
import numpy as np
import pytest
import torch
from fedduet.lm.decoding.draw import draw, uniforms


def brute_force(logits, temperature, top_k, top_p):
    """Probabilities after temperature, top-k and top-p, one token after the other, in float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    order = np.argsort(-scaled)[: top_k or None]
    weights = np.exp(scaled[order] - scaled.max())
    weights /= weights.sum()
    kept, total = np.zeros(len(scaled)), 0.0
    for token, weight in zip(order, weights, strict=True):
        if total >= top_p:
            break
        kept[token], total = weight, total + weight
    return kept / kept.sum()


def drawn_frequencies(logits, temperature, top_k, top_p, points=20_000):
    """Frequencies over an even grid of u, which for inversion are the probabilities to within 1 /
    points."""
    uniform = (torch.arange(points) + 0.5) / points
    rows = torch.as_tensor(logits, dtype=torch.float32).expand(points, -1)
    full = torch.full((points,), 1.0)
    tokens = draw(rows, uniform, full * temperature, top_k, full * top_p)
    return np.bincount(tokens.numpy(), minlength=rows.shape[1]) / points


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (5, 0.8), (1, 1.0), (40, 0.05), (99, 0.9)]
)
def test_frequencies_are_the_exact_probabilities(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(0, 1.5, 40)
    expected = brute_force(logits, temperature, top_k, top_p)
    assert np.abs(drawn_frequencies(logits, temperature, top_k, top_p) - expected).max() < 2e-4


def test_flat_distribution_needs_more_than_the_head(monkeypatch):
    monkeypatch.setattr(fedduet.lm.decoding.draw, "HEAD", 8)
    logits = np.random.default_rng(1).normal(0, 0.1, 60)
    expected = brute_force(logits, 1.0, 0, 0.9)
    assert (expected > 0).sum() > 8
    assert np.abs(drawn_frequencies(logits, 1.0, 0, 0.9) - expected).max() < 2e-4


def test_impossible_tokens_are_never_drawn_at_the_ends_of_the_interval():
    logits = torch.full((2, 6), float("-inf"))
    logits[:, 2], logits[:, 4] = 0.0, 0.0
    uniform = torch.tensor([0.0, 1 - 2**-24])
    assert draw(logits, uniform, torch.ones(2), 0, torch.ones(2)).tolist() == [2, 4]


def test_a_row_is_drawn_alike_alone_and_among_others():
    generator = torch.Generator().manual_seed(3)
    logits, uniform = torch.randn(16, 700, generator=generator), torch.rand(16, generator=generator)
    temperature, top_p = torch.linspace(0.3, 2, 16), torch.linspace(0.1, 0.99, 16)
    for top_k in (0, 20):
        together = draw(logits, uniform, temperature, top_k, top_p)
        alone = [
            draw(
                logits[i : i + 1],
                uniform[i : i + 1],
                temperature[i : i + 1],
                top_k,
                top_p[i : i + 1],
            )
            for i in range(16)
        ]
        assert together.tolist() == torch.cat(alone).tolist()


def test_streams_of_neighbouring_seeds_are_unrelated_and_prefixes_agree():
    first = torch.stack([uniforms(seed, 50) for seed in range(400)])
    correlation = np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]
    assert abs(correlation) < 0.15 and 0.45 < first[:, 0].mean() < 0.55
    assert uniforms(7, 10).tolist() == uniforms(7, 50)[:10].tolist()
    assert uniforms(-3, 2).tolist() == uniforms(-3, 2).tolist()  # any integer is a seed
