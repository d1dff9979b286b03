"""Advantages against hand-worked numbers and a loop."""

import math

import pytest
import torch
from torch import Tensor

from adagrpo.objective.advantages import check_shapes, degenerate_groups, group_advantages

NAN = float("nan")
INF = float("inf")


def loop_advantages(rewards: Tensor, valid: Tensor, penalty: float, delta: float, scale: bool) -> Tensor:
    result = torch.empty_like(rewards)
    for b in range(len(rewards)):
        kept = [float(r) for r, v in zip(rewards[b], valid[b], strict=True) if v]
        mean = sum(kept) / len(kept) if kept else 0.0
        std = math.sqrt(sum((r - mean) ** 2 for r in kept) / len(kept)) if kept else 0.0
        for g in range(rewards.shape[1]):
            if not valid[b, g]:
                result[b, g] = -penalty
            else:
                result[b, g] = (float(rewards[b, g]) - mean) / (std + delta if scale else 1.0)
    return result


def test_hand_worked_group() -> None:
    # 1, 2, 3, 6: mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5
    actual = group_advantages(torch.tensor([[1.0, 2.0, 3.0, 6.0]]), torch.ones(1, 4, dtype=torch.bool), delta=0.0)
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0]]) / math.sqrt(3.5)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_delta_is_added_to_the_deviation() -> None:
    actual = group_advantages(torch.tensor([[-1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), delta=1.0)
    torch.testing.assert_close(actual, torch.tensor([[-0.5, 0.5]]))


def test_invalid_rollouts_stay_out_of_the_statistics() -> None:
    rewards = torch.tensor([[1.0, NAN, 3.0, INF]])
    actual = group_advantages(rewards, torch.tensor([[True, False, True, False]]), invalid_penalty=2.5, delta=0.0)
    torch.testing.assert_close(actual, torch.tensor([[-1.0, -2.5, 1.0, -2.5]]))


def test_centred_only() -> None:
    rewards = torch.tensor([[1.0, 5.0, NAN]])
    actual = group_advantages(rewards, torch.tensor([[True, True, False]]), scale_rewards=False)
    torch.testing.assert_close(actual, torch.tensor([[-2.0, 2.0, -1.0]]))


@pytest.mark.parametrize("delta", [0.0, 1e-4])
def test_edge_groups(delta: float) -> None:
    rewards = torch.tensor([[2.0, 2.0], [7.0, NAN], [NAN, NAN]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    actual = group_advantages(rewards, valid, delta=delta)
    assert actual.tolist() == [[0.0, 0.0], [0.0, -1.0], [-1.0, -1.0]]


def test_group_of_one_and_no_sample() -> None:
    assert group_advantages(torch.tensor([[4.0]]), torch.tensor([[True]])).tolist() == [[0.0]]
    assert group_advantages(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [True, False])
def test_equals_the_loop(dtype: torch.dtype, scale: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(40, 7, generator=generator, dtype=dtype) * 3 + 5
    valid = torch.rand(40, 7, generator=generator) < 0.6
    rewards = rewards.masked_fill(~valid, NAN)
    actual = group_advantages(rewards, valid, invalid_penalty=0.7, delta=1e-3, scale_rewards=scale)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, loop_advantages(rewards, valid, 0.7, 1e-3, scale), rtol=1e-5, atol=1e-5)


def test_inputs_are_left_alone() -> None:
    rewards, valid = torch.tensor([[1.0, NAN]]), torch.tensor([[True, False]])
    group_advantages(rewards, valid)
    assert rewards[0, 0] == 1.0 and rewards[0, 1].isnan() and valid.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("rewards", "items", "expected"),
    [
        ([1.0, 2.0, 3.0], [4, 5, 6], False),
        ([1.0, 1.0, 1.0], [4, 5, 6], True),
        ([1.0, 2.0, 3.0], [4, 4, 4], True),  # one item, whatever its rewards
        ([1.0, 2.0, NAN], [4, 5, -1], False),
        ([1.0, NAN, INF], [4, -1, -1], True),  # one valid rollout
        ([NAN, NAN, NAN], [-1, -1, -1], True),
        ([0.0, 2e-3, 0.0], [4, 5, 6], True),  # the range equals 1e-3 of the deviation
        ([0.0, 2.1e-3, 0.0], [4, 5, 6], False),
        ([0.1 + 0.2, 0.3, 0.3], [4, 5, 6], True),  # rounding noise
        ([1.0, NAN, 3.0], [4, 5, 6], True),  # NaN at a valid place gives no order
        ([1.0, INF, 3.0], [4, 5, 6], True),
    ],
)
def test_degenerate_groups(rewards: list[float], items: list[int], expected: bool) -> None:
    actual = degenerate_groups(
        torch.tensor([rewards], dtype=torch.float64),
        torch.tensor([items]),
        running_std=torch.tensor(2.0, dtype=torch.float64),
        relative_floor=1e-3,
    )
    assert actual.tolist() == [expected]


def test_degenerate_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randint(0, 3, (200, 3), generator=generator).float()
    items = torch.randint(-1, 3, (200, 3), generator=generator)
    actual = degenerate_groups(rewards, items, running_std=torch.tensor(1.0), relative_floor=1.0)
    for b in range(200):
        pairs = [(i, r) for i, r in zip(items[b].tolist(), rewards[b].tolist(), strict=True) if i >= 0]
        values = [r for _, r in pairs]
        bad = len({i for i, _ in pairs}) < 2 or max(values) - min(values) <= 1.0
        assert bool(actual[b]) is bad


def test_a_zero_spread_asks_only_for_some_difference() -> None:
    rewards, items = torch.tensor([[0.0, 1e-6], [0.0, 0.0]]), torch.tensor([[1, 2], [1, 2]])
    assert degenerate_groups(rewards, items, running_std=torch.tensor(0.0)).tolist() == [False, True]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^valid: shape \(2, 4\) does not fit \(B=2, G=3\)"):
        group_advantages(torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^valid: a mask must be"):
        group_advantages(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^rewards: "):
        group_advantages(torch.zeros(2, 0), torch.ones(2, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^running_std: "):
        degenerate_groups(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), running_std=torch.ones(2))


def test_checks() -> None:
    check_shapes(a=(torch.zeros(2, 3), "BG"), b=(torch.zeros(()), ""), c=(torch.zeros(2, 0), "BM"))
    with pytest.raises(ValueError, match=r"^a: shape \(2,\) does not fit"):
        check_shapes(a=(torch.zeros(2), "BG"))
    with pytest.raises(ValueError, match=r"^b: a mask must be torch\.bool, found torch\.int64"):
        check_shapes(a=(torch.ones(1, dtype=torch.bool), "B?"), b=(torch.ones(1, dtype=torch.int64), "B?"))
