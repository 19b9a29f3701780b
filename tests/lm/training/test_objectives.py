"""The tuning objectives against analytic gradients on a policy of two tokens, and estimates against
exact values."""

import math

import pytest
import torch
from fedduet.lm.training.objectives import (
    dpo_loss,
    group_advantages,
    kl_estimate,
    mean_of_texts,
    policy_gradient_loss,
    preference_pairs,
)


def two_tokens(theta, tokens):
    """Log-probabilities [B, 1] of `tokens` (0 or 1) under softmax([theta, 0])."""
    both = torch.stack([theta, torch.zeros(())]).log_softmax(0)
    return both[tokens][:, None]


ONES = torch.ones(4, 1)


def test_the_policy_gradient_is_the_analytic_one():
    theta, tokens = torch.tensor(0.3, requires_grad=True), torch.tensor([0, 0, 1, 1])
    advantages = torch.tensor([1.5, -0.5, 0.25, -2.0])
    new = two_tokens(theta, tokens)
    loss = policy_gradient_loss(
        new, new.detach(), new.detach(), ONES, advantages, clip=0.2, kl_weight=0.0
    )
    loss.backward()
    p = 1 / (1 + math.exp(-0.3))
    score = {0: 1 - p, 1: -p}  # d log pi / d theta
    expected = (
        -sum(a * score[t] for a, t in zip(advantages.tolist(), tokens.tolist(), strict=True)) / 4
    )
    assert float(theta.grad) == pytest.approx(expected, rel=1e-5)


def test_equal_rewards_give_no_gradient_at_all():
    advantages = group_advantages([0.7, 0.7, 0.7, 0.7], ["a", "a", "b", "b"])
    assert not advantages.any()
    theta = torch.tensor(0.3, requires_grad=True)
    new = two_tokens(theta, torch.tensor([0, 1, 1, 0]))
    policy_gradient_loss(new, new.detach(), new.detach(), ONES, advantages, 0.2, 0.5).backward()
    assert float(theta.grad) == pytest.approx(0.0, abs=1e-7)  # the policy is the base: no KL either


def test_advantages_are_within_a_group():
    advantages = group_advantages([0.0, 1.0, 10.0, 12.0, 5.0], ["a", "a", "b", "b", "c"])
    assert (
        advantages[:4].tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-3)
        and float(advantages[4]) == 0.0
    )


def test_nothing_is_gained_outside_the_trust_region():
    """A ratio already beyond 1 + clip with a positive advantage has no gradient; one below 1 - clip
    with a positive one has."""
    for shift, advantage, moves in (
        (0.5, 1.0, False),
        (-0.5, 1.0, True),
        (-0.5, -1.0, False),
        (0.5, -1.0, True),
    ):
        new = torch.full((1, 1), -1.0 + shift, requires_grad=True)
        loss = policy_gradient_loss(
            new,
            torch.full((1, 1), -1.0),
            new.detach(),
            torch.ones(1, 1),
            torch.tensor([advantage]),
            0.2,
            0.0,
        )
        loss.backward()
        assert (float(new.grad) != 0) == moves


def test_a_texts_tokens_are_averaged_before_texts_are():
    values, mask = (
        torch.tensor([[1.0, 1.0, 1.0], [4.0, 100.0, 100.0]]),
        torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
    )
    assert float(mean_of_texts(values, mask)) == pytest.approx(2.5)


def test_the_kl_estimates_mean_is_the_kl():
    new, base = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    exact = float((new.exp() * (new - base)).sum())
    assert float((new.exp() * kl_estimate(new, base)).sum()) == pytest.approx(exact, rel=1e-5)
    assert (
        bool((kl_estimate(new, base) >= 0).all())
        and float(kl_estimate(new, new).abs().max()) == 0.0
    )


def test_the_dpo_gradient_is_the_analytic_one():
    theta = torch.tensor(0.3, requires_grad=True)
    better, worse = (
        two_tokens(theta, torch.tensor([0]))[:, 0],
        two_tokens(theta, torch.tensor([1]))[:, 0],
    )
    base = two_tokens(torch.tensor(-0.2), torch.tensor([0, 1]))[:, 0]
    loss = dpo_loss(better, worse, base[:1], base[1:], beta=0.4)
    loss.backward()
    margin = 0.4 * (0.3 - (-0.2))  # log pi(0)/pi(1) is theta
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-margin)), rel=1e-5)
    assert float(theta.grad) == pytest.approx(-0.4 / (1 + math.exp(margin)), rel=1e-5)


def test_pairs_are_within_a_group_and_never_of_equals():
    assert preference_pairs([0.1, 0.9, 0.5, 0.4], ["a", "a", "a", "a"]) == [(1, 0), (2, 3)]
    assert preference_pairs([0.1, 0.9, 0.9, 0.1], ["a", "b", "a", "b"]) == [(2, 0), (1, 3)]
    assert preference_pairs([0.5, 0.5, 0.5], ["a", "a", "a"]) == []
