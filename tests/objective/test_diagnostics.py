"""Diagnostics against hand-worked numbers and loops."""

import math

import pytest
import torch
from torch import Tensor

from adagrpo.objective import nll
from adagrpo.objective.diagnostics import (
    discriminability,
    first_occurrence,
    pairwise_agreement,
    rollout_entropy,
    rollout_miss,
    share_above,
)

NAN = float("nan")


def loop_q(target: int, reward: float, negatives: list[tuple[int, float]]) -> tuple[float, int]:
    distinct: dict[int, float] = {}
    for item, value in negatives:
        if item >= 0 and item != target:
            distinct.setdefault(item, value)
    points = sum(1.0 if reward > r else 0.5 if reward == r else 0.0 for r in distinct.values())
    return (points / len(distinct) if distinct else 0.0), len(distinct)


def pairs(items: Tensor, rewards: Tensor) -> list[tuple[int, float]]:
    return list(zip(items.tolist(), rewards.tolist(), strict=True))


def test_first_occurrence_by_hand() -> None:
    actual = first_occurrence(torch.tensor([[5, 2, 5, -1, 2, 0], [-1, -1, -1, -1, -1, -1], [3, 3, 3, 3, 3, 3]]))
    assert actual.long().tolist() == [[1, 1, 0, 0, 0, 1], [0] * 6, [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("width", [0, 1, 2, 9, 70])
def test_first_occurrence_equals_the_loop(width: int) -> None:
    items = torch.randint(-2, 8, (50, width), generator=torch.Generator().manual_seed(width))
    actual = first_occurrence(items)
    for b, row in enumerate(items.tolist()):
        assert actual[b].tolist() == [item >= 0 and item not in row[:n] for n, item in enumerate(row)]


def test_share_above_by_hand() -> None:
    scores, items = torch.tensor([[2.0, 1.0, 9.0, NAN]]), torch.tensor([[4, 6, -1, 3]])
    rollout_scores, rollout_items = torch.tensor([[2.0, 3.0, NAN, 1.0]]), torch.tensor([[4, 5, -1, 7]])
    actual = share_above(scores, items, rollout_scores, rollout_items)
    # 4 is drawn itself: 5 alone is above; 6 is below 4 and 5 and ties with 7; a rollout without a score is below all
    assert actual[0, :2].tolist() == [0.25, 0.625] and actual[0, 2:].isnan().all()
    assert share_above(scores[:, :2], items[:, :2], torch.tensor([[5.0]]), torch.tensor([[-1]])).tolist() == [[1, 1]]


def test_rollout_miss() -> None:
    items = torch.tensor([[1, 2, -1, 1], [3, 3, 3, 3], [-1, -1, -1, -1], [0, 0, 1, 1]])
    actual = rollout_miss(items, torch.tensor([1, 3, 2, -1]))
    assert actual.dtype == torch.float32
    assert actual.tolist() == [0.5, 0.0, 1.0, 1.0]
    assert rollout_miss(torch.tensor([[6]]), torch.tensor([6])).tolist() == [0.0]


def test_shares_equal_the_decimal_they_are_compared_with() -> None:
    for group in (3, 7, 10, 20):
        for hits in range(group + 1):
            items = (torch.arange(group) < hits).long()[None]
            threshold = (group - hits) / group
            assert (rollout_miss(items, torch.tensor([1])) >= threshold).item()


def test_nll_and_entropy() -> None:
    torch.testing.assert_close(nll(torch.tensor([[-1.0, -3.0], [0.0, -8.0]])), torch.tensor([2.0, 4.0]))
    log_probs = torch.tensor([[[-1.0, -3.0], [-2.0, -6.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(rollout_entropy(log_probs), torch.tensor([3.0, 0.0]))


def test_entropy_estimates_the_entropy() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    # every code as often as its probability says: the estimate is then the entropy itself, 1.75 bits
    codes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    log_probs = probabilities.log()[codes][None, :, None]
    assert float(rollout_entropy(log_probs)) == pytest.approx(1.75 * math.log(2), rel=1e-12)


def test_discriminability_by_hand() -> None:
    actual = discriminability(
        target_reward=torch.tensor([2.0]),
        rollout_rewards=torch.tensor([[1.0, 1.0, 2.0, NAN, NAN, 3.0]]),
        rollout_items=torch.tensor([[10, 10, 11, -1, 7, 12]]),  # 7 is the target
        negative_rewards=torch.tensor([[1.0, 0.0, NAN, NAN]]),
        negative_items=torch.tensor([[10, 13, -1, 7]]),
        targets=torch.tensor([7]),
    )
    # rollouts 10 win, 11 tie, 12 loss; in batch 10 win, 13 win; union 10, 11, 12, 13
    torch.testing.assert_close(actual.q, torch.tensor([2.5 / 4]))
    assert actual.negatives.tolist() == [4]


def test_discriminability_of_empty_sets() -> None:
    actual = discriminability(
        target_reward=torch.tensor([2.0, 2.0, 2.0]),
        rollout_rewards=torch.tensor([[1.0], [NAN], [1.0]]),
        rollout_items=torch.tensor([[7], [-1], [3]]),
        negative_rewards=torch.tensor([[NAN], [1.0], [NAN]]),
        negative_items=torch.tensor([[-1], [4], [-1]]),
        targets=torch.tensor([7, 7, 7]),
    )
    assert actual.q.tolist() == [0.0, 1.0, 1.0]
    assert actual.negatives.tolist() == [0, 1, 1]


def test_discriminability_all_equal_and_without_in_batch_items() -> None:
    actual = discriminability(
        target_reward=torch.ones(1),
        rollout_rewards=torch.ones(1, 3),
        rollout_items=torch.tensor([[1, 2, 3]]),
        negative_rewards=torch.ones(1, 0),
        negative_items=torch.ones(1, 0, dtype=torch.int64),
        targets=torch.tensor([9]),
    )
    assert (actual.q.tolist(), actual.negatives.tolist()) == ([0.5], [3])


def test_a_nan_reward_wins_nothing() -> None:
    actual = discriminability(
        target_reward=torch.tensor([NAN, 1.0]),
        rollout_rewards=torch.tensor([[0.0, 0.0], [0.0, NAN]]),
        rollout_items=torch.tensor([[1, 2], [1, 2]]),
        negative_rewards=torch.zeros(2, 0),
        negative_items=torch.zeros(2, 0, dtype=torch.int64),
        targets=torch.tensor([9, 9]),
    )
    assert actual.q.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discriminability_equals_the_loop(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    table = torch.randint(0, 5, (100, 12), generator=generator).to(dtype)  # reward of each item, with many ties
    rollouts = torch.randint(-1, 12, (100, 6), generator=generator)
    batch = torch.randint(-1, 12, (100, 4), generator=generator)
    targets = torch.randint(0, 12, (100,), generator=generator)
    reward = table.gather(1, targets[:, None])[:, 0]
    rollout_rewards = table.gather(1, rollouts.clamp(min=0)).masked_fill(rollouts < 0, NAN)
    batch_rewards = table.gather(1, batch.clamp(min=0)).masked_fill(batch < 0, NAN)
    actual = discriminability(reward, rollout_rewards, rollouts, batch_rewards, batch, targets)
    assert actual.q.dtype == dtype
    for b in range(100):
        y, r = int(targets[b]), float(reward[b])
        one, two = pairs(rollouts[b], rollout_rewards[b]), pairs(batch[b], batch_rewards[b])
        q, count = loop_q(y, r, one + two)
        assert float(actual.q[b]) == pytest.approx(q, rel=1e-6)
        assert int(actual.negatives[b]) == count


def test_nineteen_of_twenty_reach_a_threshold_of_95_percent() -> None:
    rewards = torch.zeros(1, 20)
    rewards[0, 3] = 5.0
    actual = discriminability(
        torch.ones(1), rewards, torch.arange(20)[None], torch.zeros(1, 0), torch.zeros(1, 0).long(), torch.tensor([99])
    )
    assert (actual.q >= 0.95).tolist() == [True]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^targets: "):
        rollout_miss(torch.zeros(2, 3).long(), torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"^negative_items: "):
        discriminability(
            torch.zeros(2),
            torch.zeros(2, 3),
            torch.zeros(2, 3).long(),
            torch.zeros(2, 4),
            torch.zeros(2, 3).long(),
            torch.zeros(2).long(),
        )
    with pytest.raises(ValueError, match=r"^log_probs: "):
        rollout_entropy(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^items: "):
        first_occurrence(torch.zeros(2).long())


# ---------------------------------------------------------------- agreement with a truth


@torch.no_grad()
def test_pairwise_agreement_is_the_loop() -> None:
    generator = torch.Generator().manual_seed(4)
    items = torch.randint(-1, 6, (80, 7), generator=generator)
    table = torch.randint(0, 4, (2, 80, 6), generator=generator).float()  # ties on both sides
    rewards, utilities = (values.gather(1, items.clamp(min=0)) for values in table)
    rewards, utilities = rewards.masked_fill(items < 0, torch.nan), utilities.masked_fill(items < 0, torch.nan)
    actual = pairwise_agreement(rewards, utilities, items)
    for b in range(80):
        distinct = sorted({item for item in items[b].tolist() if item >= 0})
        points = pairs = 0.0
        for one in distinct:
            for other in distinct:
                if table[1, b, one] > table[1, b, other]:
                    pairs += 1
                    right, wrong = table[0, b, one], table[0, b, other]
                    points += 1.0 if right > wrong else 0.5 if right == wrong else 0.0
        assert int(actual.pairs[b]) == pairs
        assert float(actual.share[b]) == pytest.approx(points / pairs if pairs else 0.0)
    assert (actual.pairs == 0).any() and (actual.pairs > 3).any()


def test_agreement_at_the_edges() -> None:
    items = torch.tensor([[1, 1, 1], [-1, -1, -1], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    utilities = torch.tensor([[0.5] * 3, [0.5] * 3, [0.5] * 3, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    rewards = torch.tensor([[1.0] * 3, [torch.nan] * 3, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0] * 3])
    actual = pairwise_agreement(rewards, utilities, items)
    assert actual.pairs.tolist() == [0, 0, 0, 3, 3] and actual.share.tolist() == [0, 0, 0, 0, 0.5]
    with pytest.raises(ValueError, match="utilities"):
        pairwise_agreement(rewards, utilities[:2], items)
