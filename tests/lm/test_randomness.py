"""Named streams are apart and repeatable; the secure source is Gaussian and cannot be replayed."""

import numpy as np
import torch
from fedduet.lm.randomness import SecureNoise, SeededNoise, derive, generator, numpy_generator
from scipy import stats


def test_names_make_streams():
    assert derive(0, "a", "b") != derive(0, "ab") != derive(0, "a", "b", "") and derive(
        0, 1
    ) != derive(0, "1")
    assert len({derive(seed, name) for seed in range(50) for name in ("x", "y", "z")}) == 150
    assert 0 <= derive(3, "x") < 2**63
    assert torch.equal(
        torch.rand(5, generator=generator(1, "a")), torch.rand(5, generator=generator(1, "a"))
    )
    assert not np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(1, "b").random(5))


def test_the_derived_seed_never_changes():
    assert derive(7, "slm", 3) == 4283675105860676016


def test_secure_normals_are_standard_normal():
    drawn = SecureNoise().normal(400_001)
    assert drawn.dtype == torch.float32 and drawn.shape == (400_001,)
    values = drawn.double().numpy()
    # wrong by construction would be: variance 0.5 or 2, a missing sine half, a radius from log(u) +
    # 1
    assert abs(values.mean()) < 6 / 400_001**0.5
    assert abs(values.var() - 1) < 6 * (2 / 400_001) ** 0.5
    assert stats.kstest(values, "norm").pvalue > 1e-6
    # the cosine and the sine half of its pairs do not correlate, nor do their squares
    chunk = SecureNoise.chunk
    one, other = values[: 6 * chunk].reshape(6, 2, chunk // 2).swapaxes(0, 1).reshape(2, -1)
    assert abs(np.corrcoef(one, other)[0, 1]) < 6 / len(one) ** 0.5
    assert abs(np.corrcoef(one**2, other**2)[0, 1]) < 6 / len(one) ** 0.5


def test_secure_draws_cross_chunks_and_never_repeat():
    source = SecureNoise()
    source.chunk = 10
    assert len({float(x) for x in source.normal(95)}) > 90
    assert source.normal(0).shape == (0,)
    uniforms = source.uniform(100_000)
    assert (
        uniforms.min() >= 0
        and uniforms.max() < 1
        and stats.kstest(uniforms, "uniform").pvalue > 1e-6
    )
    torch.manual_seed(0)
    np.random.seed(0)
    first = SecureNoise().normal(4)
    torch.manual_seed(0)
    np.random.seed(0)
    assert not torch.equal(first, SecureNoise().normal(4))


def test_seeded_noise_repeats():
    assert torch.equal(SeededNoise(1).normal(9), SeededNoise(1).normal(9))
    assert np.array_equal(SeededNoise(1).uniform(9), SeededNoise(1).uniform(9))
    assert not np.array_equal(SeededNoise(1).uniform(9), SeededNoise(2).uniform(9))
