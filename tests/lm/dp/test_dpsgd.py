"""What is accounted is what runs: the Poisson coins, the noise's scale, the steps; and it learns
when it may."""

import math

import numpy as np
import pytest
import torch
from fedduet.conf.check import ConfigError, check
from fedduet.lm.decoding.sample import sample_texts
from fedduet.lm.dp.clipped_sums import loss_batch, row_losses
from fedduet.lm.dp.config import DPConfig
from fedduet.lm.dp.dpsgd import planned_steps, poisson_batch, prepare_generator, train_generator
from fedduet.lm.models.batch import encode_document
from fedduet.lm.models.load import trainable
from fedduet.lm.randomness import SecureNoise, SeededNoise
from scipy import stats

CONTROLS = ["label good : ", "label bad : "] * 8
TEXTS = ["the film was nice", "the book was awful"] * 8
FAST = {"precision": "fp32", "logical_batch": 8, "micro_batch": 16, "max_tokens": 16}


class Coins(SeededNoise):
    """Seeded noise that answers the coins with what a test wants, one step after the other."""

    def __init__(self, seed, steps):
        super().__init__(seed)
        self._steps = iter(steps)

    def uniform(self, count):
        chosen = next(self._steps)
        return np.array([0.0 if i in chosen else 1.0 for i in range(count)])


def mean_loss(model, tokenizer, texts=TEXTS):
    rows = [encode_document(tokenizer, c, t, 16) for c, t in zip(CONTROLS, texts, strict=True)]
    batch = loss_batch(rows, 0, True)
    with torch.no_grad():
        return float(row_losses(model(input_ids=batch.ids).logits, batch.ids, batch.weights).mean())


def test_planned_steps_states_the_rate_that_runs():
    assert planned_steps(DPConfig(epochs=10, logical_batch=64), 1000) == (156, 0.064)
    assert planned_steps(DPConfig(epochs=3, logical_batch=64), 50) == (3, 1.0)
    assert planned_steps(DPConfig(steps=7, logical_batch=5), 50) == (7, 0.1)
    with pytest.raises(ValueError, match="found 0 private texts"):
        planned_steps(DPConfig(), 0)


def test_poisson_batches_are_binomial_and_independent():
    n, rate, source = 40, 0.2, SecureNoise()
    batches = [poisson_batch(n, rate, source) for _ in range(4000)]
    sizes = np.array([len(batch) for batch in batches])
    deviation = math.sqrt(n * rate * (1 - rate))
    # a fixed-size sampler has the mean but not the variance
    assert abs(sizes.mean() - n * rate) < 5 * deviation / math.sqrt(4000)
    assert sizes.var() == pytest.approx(deviation**2, rel=0.12)
    expected = stats.binom.pmf(np.arange(4, 13), n, rate) * 4000
    observed = np.array([(sizes == k).sum() for k in range(4, 13)])
    assert (((observed - expected) ** 2) / expected).sum() < stats.chi2.ppf(1 - 1e-6, 9)
    member = np.zeros((4000, n))
    for step, batch in enumerate(batches):
        member[step, batch] = 1
    assert abs(member.mean(axis=0) - rate).max() < 6 * math.sqrt(rate * (1 - rate) / 4000)
    pairs = np.corrcoef(member.T)[np.triu_indices(n, 1)]
    # without replacement: -1 / (n - 1) = -0.026 each
    assert abs(pairs.mean()) < 0.003 and abs(pairs).max() < 0.1
    assert poisson_batch(5, 1.0, source) == [0, 1, 2, 3, 4]


def test_the_run_uses_the_planned_rate_and_new_coins_each_step(tokenizer, llama):
    config = DPConfig(steps=40, **FAST)
    report = train_generator(
        prepare_generator(llama(), config), tokenizer, CONTROLS, TEXTS, config, 0.0, SecureNoise()
    )
    assert (report.steps, report.sample_rate) == (40, 0.5) and len(report.batch_sizes) == 40
    assert len(set(report.batch_sizes)) > 3
    assert abs(np.mean(report.batch_sizes) - 8) < 6 * math.sqrt(4 / 40)


def gradients_of_one_step(model, tokenizer, config, sigma, randomness, monkeypatch, owners=None):
    """The gradients the optimizer saw in each step."""
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *arguments, **named):
        seen.append(
            torch.cat(
                [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            ).clone()
        )
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train_generator(model, tokenizer, CONTROLS, TEXTS, config, sigma, randomness, owners)
    return seen


@pytest.mark.parametrize("source", ["secure", "seeded"])
def test_an_empty_batch_is_a_step_of_noise_with_the_stated_deviation(
    tokenizer, llama, monkeypatch, source
):
    config = DPConfig(steps=3, clip=0.7, **FAST)
    randomness = Coins(3, [[], [], []])
    if source == "secure":
        randomness.add_noise = SecureNoise().add_noise
    seen = gradients_of_one_step(
        prepare_generator(llama(), config), tokenizer, config, 1.5, randomness, monkeypatch
    )
    # sigma * C / expected batch size, although the batch that ran is empty
    deviation = 1.5 * 0.7 / 8
    values = torch.cat(seen).double().numpy() / deviation
    count = len(values)
    assert (
        count
        == 3 * sum(p.numel() for p in trainable(prepare_generator(llama(), config)).values())
        > 5000
    )
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], count)
    assert low < (values**2).sum() < high
    assert stats.kstest(values, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(seen[0], seen[1])[0, 1]) < 6 / math.sqrt(count / 3)


def test_the_sum_is_divided_by_the_expected_batch_size(tokenizer, llama, monkeypatch):
    """Two rows drawn where eight are expected: their clipped sum over 8, not over 2; and the user's
    clip bounds it."""
    for clip in (0.05, 0.5):
        config = DPConfig(steps=1, tuning="full", clip=clip, **FAST)
        seen = gradients_of_one_step(
            llama().requires_grad_(True), tokenizer, config, 0.0, Coins(0, [[0]]), monkeypatch
        )
        assert float(seen[0].norm()) == pytest.approx(clip / 8, rel=1e-3)


def test_micro_batches_and_engines_do_not_change_the_result(tokenizer, llama):
    ends = []
    for size, engine in ((1, "vmap"), (16, "vmap"), (3, "hooks")):
        config = DPConfig(
            steps=3, learning_rate=1e-2, **(FAST | {"micro_batch": size, "engine": engine})
        )
        model = prepare_generator(llama(), config)
        train_generator(model, tokenizer, CONTROLS, TEXTS, config, 0.8, SeededNoise(4))
        ends.append(torch.cat([p.detach().flatten() for p in trainable(model).values()]))
    assert torch.allclose(ends[0], ends[1], atol=1e-4) and torch.allclose(
        ends[0], ends[2], atol=1e-4
    )


def test_it_learns_without_noise_and_not_under_huge_noise(tokenizer, llama):
    config = DPConfig(steps=20, rank=4, learning_rate=1e-2, clip=1.0, **FAST)
    losses = {}
    for sigma in (0.0, 1000.0):
        model = prepare_generator(llama(), config)
        before = mean_loss(model, tokenizer)
        train_generator(model, tokenizer, CONTROLS, TEXTS, config, sigma, SeededNoise(0))
        losses[sigma] = (before, mean_loss(model, tokenizer))
    assert losses[0.0][1] < 0.5 * losses[0.0][0]
    assert losses[1000.0][1] > 0.9 * losses[1000.0][0]


def test_a_trained_generator_follows_its_control_code_and_stops(tokenizer, llama):
    config = DPConfig(steps=50, tuning="full", learning_rate=1e-2, **FAST)
    model = llama().requires_grad_(True)
    train_generator(model, tokenizer, CONTROLS, TEXTS, config, 0.0, SeededNoise(0))
    samples = sample_texts(
        model,
        tokenizer,
        ["label good : ", "label bad : "] * 5,
        12,
        temperature=0.2,
        precision="fp32",
    )
    # without EOS in the training string none would be
    assert all(sample.finished for sample in samples)
    assert {sample.text for sample in samples[::2]} == {"the film was nice"}
    assert {sample.text for sample in samples[1::2]} == {"the book was awful"}


def test_seeds_repeat_and_secure_runs_do_not(tokenizer, llama):
    def trained(randomness):
        config = DPConfig(steps=2, learning_rate=1e-2, **FAST)
        model = prepare_generator(llama(), config, seed=5)
        train_generator(model, tokenizer, CONTROLS, TEXTS, config, 1.0, randomness)
        return torch.cat([p.detach().flatten() for p in trainable(model).values()])

    assert torch.equal(trained(SeededNoise(1)), trained(SeededNoise(1)))
    assert not torch.equal(trained(SeededNoise(1)), trained(SeededNoise(2)))
    torch.manual_seed(0)
    first = trained(SecureNoise())
    torch.manual_seed(0)
    assert not torch.equal(first, trained(SecureNoise()))


def test_bad_input_is_refused(tokenizer, llama):
    model = prepare_generator(llama(), DPConfig())
    for controls, texts, sigma, match in (
        (["a"], ["b", "c"], 1.0, "1 control codes for 2 texts"),
        (["a"], ["b"], -1.0, "found -1.0"),
        (["a"], ["b"], math.nan, "found nan"),
        ([], [], 1.0, "found 0 private texts"),
    ):
        with pytest.raises(ValueError, match=match):
            train_generator(model, tokenizer, controls, texts, DPConfig(), sigma, SeededNoise(0))
    with pytest.raises(ValueError, match="no trainable parameters"):
        train_generator(
            llama().requires_grad_(False), tokenizer, ["a"], ["b"], DPConfig(), 1.0, SeededNoise(0)
        )
    with pytest.raises(ConfigError, match=r"generator\.clip: found 0"):
        check(DPConfig, {"clip": 0}, "generator")
