"""Cross-entropy over sampled negatives against autograd through the whole matrix of logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adagrpo import networks
from adagrpo.networks import sampled_softmax_loss

TARGETS = torch.tensor([3, 0, 3, 7, 5])
NEGATIVES = torch.tensor([3, 3, 9, 0, 8, 3])  # drawn with repetition; hits of three of the five targets


def inputs(samples: int, negatives: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(samples, 4), (samples,), (negatives, 4), (negatives,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def slow(states: Tensor, positive: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    logits = (states @ vectors.T + bias).masked_fill(negatives == targets.unsqueeze(1), -torch.inf)
    return -torch.cat([positive.unsqueeze(1), logits], dim=1).log_softmax(1)[:, 0]


@pytest.mark.parametrize("rows", [2, 128])  # rows at a time: the last part is shorter than the others
def test_losses_and_gradients_are_those_of_the_plain_softmax(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(networks, "_ROWS", rows)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    tensors = inputs(5, 6)
    actual = sampled_softmax_loss(*tensors, TARGETS, NEGATIVES)
    expected = slow(*tensors, TARGETS, NEGATIVES)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7, check_dtype=False)  # positives become float32
    gradients = torch.autograd.grad((actual * weights).sum(), tensors, retain_graph=True)
    again = torch.autograd.grad((actual * weights).sum(), tensors)  # norms of loss terms go backward twice
    for one, two, other in zip(gradients, again, torch.autograd.grad((expected * weights).sum(), tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        assert torch.equal(one, two)


def test_a_loss_is_0_without_gradient_where_every_negative_is_the_target() -> None:
    tensors = inputs(2, 3, torch.float32)
    losses = sampled_softmax_loss(*tensors, torch.tensor([4, 1]), torch.tensor([4, 4, 4]))
    assert losses.tolist()[0] == 0.0 and losses.tolist()[1] > 0
    gradients = torch.autograd.grad(losses.sum(), tensors)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert not gradients[0][0].any() and float(gradients[1][0]) == 0.0 and gradients[0][1].any()


def test_mixed_precision_stays_near_float32() -> None:
    tensors = inputs(5, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = sampled_softmax_loss(*tensors, TARGETS, NEGATIVES)
    expected = slow(*tensors, TARGETS, NEGATIVES)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)  # logits have eight bits
    for one, other in zip(
        torch.autograd.grad(actual.sum(), tensors), torch.autograd.grad(expected.sum(), tensors), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)
