"""Values of the loss terms against hand-worked numbers and loops."""

import math

import pytest
import torch

from adagrpo.objective.losses import (
    clipped_surrogate,
    gated_sum,
    group_loss,
    kl_k3,
    nll,
    zero_rejected,
)

NAN = float("nan")
INF = float("inf")


def test_nll_by_hand() -> None:
    log_probs = torch.tensor([[0.5, 0.25, 0.125], [1.0, 1.0, 1.0]]).log()
    torch.testing.assert_close(nll(log_probs), torch.tensor([2 * math.log(2), 0.0]))
    assert nll(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.25, 2.0, -2.5, False),
        (1.5, 2.0, -2.6, True),  # cut at 1.3
        (0.5, 2.0, -1.0, False),  # a good code that became rarer is still pushed up
        (0.5, -2.0, 1.6, True),  # cut at 0.8
        (0.9, -2.0, 1.8, False),
        (1.5, -2.0, 3.0, False),  # a bad code that became likelier is still pushed down
        (1.5, 0.0, 0.0, False),
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    old = torch.tensor([[[0.3]]], dtype=torch.float64).log()
    actual = clipped_surrogate(
        old + math.log(ratio),
        old,
        torch.tensor([[advantage]], dtype=torch.float64),
        epsilon=0.2,
        epsilon_high=0.3,
    )
    assert float(actual.loss) == pytest.approx(loss, rel=1e-9)
    assert actual.clipped.tolist() == [[[clipped]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clipped_surrogate_equals_the_loop(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    new = -torch.rand(4, 5, 3, generator=generator, dtype=dtype)
    old = -torch.rand(4, 5, 3, generator=generator, dtype=dtype)
    advantages = torch.randn(4, 5, generator=generator, dtype=dtype)
    actual = clipped_surrogate(new, old, advantages, epsilon=0.1, epsilon_high=0.4)
    assert actual.loss.dtype == dtype
    for b in range(4):
        for g in range(5):
            a = float(advantages[b, g])
            for level in range(3):
                w = math.exp(float(new[b, g, level]) - float(old[b, g, level]))
                cut = min(max(w, 0.9), 1.4)
                assert float(actual.loss[b, g, level]) == pytest.approx(-min(w * a, cut * a), rel=1e-5)
                assert bool(actual.clipped[b, g, level]) is (cut * a < w * a)


def test_kl_k3_by_hand() -> None:
    # π 1/2, π_ref 1/4: x = -ln 2, 1/2 + ln 2 - 1
    log_probs = torch.tensor([[[0.5, 0.5]]], dtype=torch.float64).log()
    reference = torch.tensor([[[0.25, 0.5]]], dtype=torch.float64).log()
    expected = torch.tensor([[[math.log(2) - 0.5, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(kl_k3(log_probs, reference), expected)


def test_kl_k3_is_never_negative_and_precise_near_zero() -> None:
    differences = torch.logspace(-8, 0, 400).reshape(1, 400, 1)
    for sign in (-1.0, 1.0):
        actual = kl_k3(torch.zeros(1, 400, 1), sign * differences)
        assert (actual >= 0).all()
        # around 0 it is x²/2 + x³/6; a relative 1 % at x = 1e-4 is what float32 leaves of it
        x = sign * 1e-4
        assert float(kl_k3(torch.zeros(1, 1, 1), torch.full((1, 1, 1), x))) == pytest.approx(x * x / 2, rel=1e-2)


def test_kl_k3_is_unbiased() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    estimate = kl_k3(policy.log().reshape(1, 3, 1), reference.log().reshape(1, 3, 1)).flatten()
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * estimate).sum(), exact, rtol=1e-9, atol=1e-12)


def test_group_loss_by_hand() -> None:
    loss = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [0.0, 2.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 6.0]]])
    torch.testing.assert_close(group_loss(loss), torch.tensor([3.0, 1.0]))
    assert group_loss(torch.tensor([[[4.0]]])).tolist() == [4.0]


def test_zero_rejected() -> None:
    values = torch.tensor([[[1.0, 2.0]], [[NAN, INF]]])
    assert zero_rejected(values, torch.tensor([True, False])).tolist() == [[[1.0, 2.0]], [[0.0, 0.0]]]
    assert zero_rejected(torch.tensor([5.0, NAN]), torch.tensor([True, False])).tolist() == [5.0, 0.0]
    assert zero_rejected(torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)).shape == (0, 2)


def test_gated_sum_by_hand() -> None:
    losses = torch.tensor([1.0, NAN, 4.0, -INF])
    admitted = torch.tensor([True, False, True, False])
    assert gated_sum(losses, admitted, total=4).item() == 1.25
    assert gated_sum(losses, admitted, total=torch.tensor(10)).item() == 0.5
    nobody = torch.zeros(4, dtype=torch.bool)
    assert gated_sum(losses, nobody, total=4).item() == 0.0
    assert gated_sum(torch.zeros(0), torch.zeros(0, dtype=torch.bool), total=4).item() == 0.0


def test_micro_batches_add_up_to_the_step() -> None:
    generator = torch.Generator().manual_seed(2)
    losses = torch.randn(12, generator=generator, dtype=torch.float64)
    admitted = torch.rand(12, generator=generator) < 0.4
    parts = [gated_sum(losses[i : i + 4], admitted[i : i + 4], total=12) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).sum(), gated_sum(losses, admitted, total=12))
    loop = sum(float(x) for x, keep in zip(losses, admitted, strict=True) if keep) / 12
    assert float(torch.stack(parts).sum()) == pytest.approx(loop, rel=1e-9)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^log_probs: "):
        nll(torch.zeros(3))
    with pytest.raises(ValueError, match=r"^old_log_probs: "):
        clipped_surrogate(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^advantages: "):
        clipped_surrogate(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"^reference_log_probs: "):
        kl_k3(torch.zeros(2, 3, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^loss: "):
        group_loss(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^admitted: "):
        gated_sum(torch.zeros(2), torch.ones(3, dtype=torch.bool), total=2)
    with pytest.raises(ValueError, match=r"^admitted: a mask"):
        gated_sum(torch.zeros(2), torch.ones(2), total=2)
    with pytest.raises(ValueError, match=r"^total: "):
        gated_sum(torch.zeros(2), torch.ones(2, dtype=torch.bool), total=0)
    with pytest.raises(ValueError, match=r"^values: "):
        zero_rejected(torch.zeros(3, 2), torch.ones(2, dtype=torch.bool))
