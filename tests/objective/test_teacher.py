"""The reward as a teacher: hand-worked groups, loops, and the gradients that training takes."""

from __future__ import annotations

import math

import pytest
import torch

from adagrpo.objective import best_of_n_loss, listwise_distillation


def group(*, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities (6, 5, 3), teacher (6, 5), items (6, 5) with repeats and invalid rollouts."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(-1, 4, (6, 5), generator=generator)
    items[4] = -1
    items[5] = 2
    log_probs = -torch.rand(4, 3, generator=generator, dtype=torch.float64)[items.clamp(min=0)]  # of the item alone
    teacher = torch.randn(4, generator=generator, dtype=torch.float64)[items.clamp(min=0)]
    return log_probs, teacher.masked_fill(items < 0, torch.nan), items


def test_distillation_equals_the_loop_over_distinct_items() -> None:
    log_probs, teacher, items = group()
    found = listwise_distillation(log_probs, teacher, items)
    for b in range(len(items)):
        first = {int(item): g for g, item in reversed(list(enumerate(items[b]))) if item >= 0}
        q = {item: math.exp(float(teacher[b, g])) for item, g in first.items()}
        p = {item: math.exp(float(log_probs[b, g].sum())) for item, g in first.items()}
        kl = sum(
            q[i] / sum(q.values()) * math.log(q[i] / sum(q.values()) / (p[i] / sum(p.values()))) for i in sorted(first)
        )
        assert float(found[b]) == pytest.approx(kl, abs=1e-12)
    assert found[4] == 0 and found[5] == 0  # no item, and one item five times


def test_a_policy_that_is_its_teacher_has_nothing_to_learn() -> None:
    log_probs, _, items = group(seed=1)
    log_probs.requires_grad_()
    loss = listwise_distillation(log_probs, log_probs.detach().sum(-1) + 7.0, items)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_distillation_has_the_gradient_p_minus_q_and_none_elsewhere() -> None:
    log_probs, teacher, items = group(seed=2)
    teacher = teacher.requires_grad_()
    log_probs = log_probs.requires_grad_()
    gradient, none = torch.autograd.grad(
        listwise_distillation(log_probs, teacher, items).sum(), (log_probs, teacher), allow_unused=True
    )
    assert none is None and torch.isfinite(gradient).all()
    for b in range(len(items)):
        first = sorted({int(item): g for g, item in reversed(list(enumerate(items[b]))) if item >= 0}.values())
        wanted = torch.zeros(items.shape[1], dtype=torch.float64)
        if first:
            p, q = log_probs[b, first].sum(-1).softmax(0), teacher[b, first].softmax(0)
            wanted[first] = (p - q).detach()
        torch.testing.assert_close(gradient[b], wanted.unsqueeze(1).expand(-1, 3), rtol=1e-9, atol=1e-12)


def test_best_of_n_is_the_nll_of_the_best_valid_rollout() -> None:
    log_probs = torch.tensor([[[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]]] * 4).requires_grad_()
    rewards = torch.tensor([[0.1, 0.2, 0.3], [0.5, 0.5, 0.1], [9.0, 0.1, math.nan], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True, True, True], [True, True, True], [False, True, False], [False, False, False]])
    found = best_of_n_loss(log_probs, rewards, valid)
    assert found.tolist() == [5.5, 1.5, 3.5, 0.0]
    (gradient,) = torch.autograd.grad(found.sum(), log_probs)
    assert gradient[:, :, 0].tolist() == [[0, 0, -0.5], [-0.5, 0, 0], [0, -0.5, 0], [0, 0, 0]]


@pytest.mark.parametrize("name", ["teacher", "items"])
def test_a_wrong_shape_is_named(name: str) -> None:
    log_probs, teacher, items = group()
    given = {"teacher": teacher, "items": items}
    given[name] = given[name][:, :-1]
    with pytest.raises(ValueError, match=name):
        listwise_distillation(log_probs, **given)
