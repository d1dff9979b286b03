"""Gradients of the objective: against finite differences, hand-worked values, and exact zeros."""

import torch
from torch import Tensor

from adagrpo.objective import (
    clipped_surrogate,
    gated_sum,
    group_advantages,
    group_loss,
    kl_k3,
    nll,
    zero_rejected,
)

NAN = float("nan")
INF = float("inf")


def uniform(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def grad(output: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(output, parameter)[0]


def test_gradcheck_of_the_smooth_terms() -> None:
    log_probs = uniform(2, 3, 2, seed=0, low=-3, high=-1).requires_grad_()
    reference = uniform(2, 3, 2, seed=1, low=-3, high=-1)
    assert torch.autograd.gradcheck(lambda x: nll(x.reshape(6, 2)), log_probs)
    assert torch.autograd.gradcheck(lambda x: kl_k3(x, reference), log_probs)
    assert torch.autograd.gradcheck(group_loss, log_probs)


def test_gradcheck_of_the_surrogate() -> None:
    # log-ratios well inside and well outside the clip range, away from its two kinks
    old = uniform(2, 4, 2, seed=3, low=-3, high=-1)
    shift = torch.tensor([-0.9, -0.1, 0.1, 0.9], dtype=torch.float64).reshape(1, 4, 1)
    log_probs = (old + shift).requires_grad_()
    advantages = torch.tensor([[1.5, -0.5, 0.7, -2.0], [-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, advantages).loss, log_probs)
    result = clipped_surrogate(log_probs, old, advantages)
    assert result.clipped.any() and not result.clipped.all()
    slope = grad(result.loss.sum(), log_probs)
    assert (slope[result.clipped] == 0).all() and (slope[~result.clipped] != 0).all()


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    # at ratio 1 the slope of -min(w A, clip(w) A) in log π is -A, although both branches are equal there
    log_probs = uniform(2, 3, 2, seed=4, low=-3, high=-1).requires_grad_()
    advantages = uniform(2, 3, seed=5, low=-1)
    slope = grad(clipped_surrogate(log_probs, log_probs, advantages).loss.sum(), log_probs)
    torch.testing.assert_close(slope, -advantages[:, :, None].expand(2, 3, 2))


def test_constants_carry_no_gradient() -> None:
    log_probs = torch.zeros(1, 2, 1, requires_grad=True)
    old, advantages = torch.zeros(1, 2, 1, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    loss = clipped_surrogate(log_probs, old, advantages).loss + kl_k3(log_probs, old)
    assert torch.autograd.grad(loss.sum(), [old, advantages], allow_unused=True) == (None, None)


def test_gradcheck_of_the_advantages() -> None:
    rewards = uniform(3, 4, seed=6).requires_grad_()
    valid = torch.tensor([[True, True, True, True], [True, False, True, True], [False, False, True, True]])
    assert torch.autograd.gradcheck(lambda r: group_advantages(r, valid), rewards)


def test_advantages_leak_no_nan_into_gradients() -> None:
    rewards = torch.tensor([[1.0, NAN, 2.0], [2.0, 2.0, INF], [NAN, NAN, NAN]], requires_grad=True)
    valid = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    weights = torch.tensor([[1.0, 2.0, 3.0]])
    slope = grad((group_advantages(rewards, valid) * weights).sum(), rewards)
    assert slope.isfinite().all()
    assert (slope[~valid] == 0).all()


def test_gated_sum_has_exact_gradients() -> None:
    losses = torch.tensor([1.0, NAN, 4.0, INF], requires_grad=True)
    admitted = torch.tensor([True, False, True, False])
    assert grad(gated_sum(losses, admitted, total=8), losses).tolist() == [0.125, 0.0, 0.125, 0.0]
    nobody = torch.zeros(4, dtype=torch.bool)
    assert grad(gated_sum(losses, nobody, total=8), losses).tolist() == [0.0] * 4
    finite = uniform(4, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gated_sum(x, admitted, total=5), finite)


def test_whole_term_of_rejected_samples_has_gradient_zero() -> None:
    log_probs = uniform(3, 2, 2, seed=8, low=-3, high=-1).requires_grad_()
    old = log_probs.detach() + 0.05
    advantages = torch.tensor([[1.0, -1.0], [2.0, -2.0], [1.0, 0.5]], dtype=torch.float64)
    admitted = torch.tensor([True, False, True])
    loss = group_loss(clipped_surrogate(log_probs, old, advantages).loss + 0.1 * kl_k3(log_probs, old))
    slope = grad(gated_sum(loss, admitted, total=3), log_probs)
    assert (slope[1] == 0).all() and (slope[[0, 2]] != 0).all()


def test_zero_rejected_keeps_nan_out_of_the_whole_term() -> None:
    log_probs = torch.full((2, 2, 2), -1.0, requires_grad=True)
    old = torch.stack((torch.full((2, 2), -1.0), torch.full((2, 2), -200.0)))  # the second ratio overflows
    advantages = torch.tensor([[1.0, -1.0], [NAN, INF]])
    admitted = torch.tensor([True, False])
    new, old, advantages = (zero_rejected(values, admitted) for values in (log_probs, old, advantages))
    term = gated_sum(group_loss(clipped_surrogate(new, old, advantages).loss), admitted, total=2)
    slope = grad(term, log_probs)
    # -A / (G L total) = ∓1 / 8
    assert slope.tolist() == [[[-0.125, -0.125], [0.125, 0.125]], [[0.0, 0.0], [0.0, 0.0]]]
