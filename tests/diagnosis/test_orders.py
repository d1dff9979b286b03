from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from adagrpo import metrics
from adagrpo.diagnosis.orders import (
    Lists,
    cross_fitted_mix,
    mixed_keys,
    permuted,
    repeated_mix,
    serving_quantities,
    target_ranks,
)
from adagrpo.rewards.reranking import WEIGHTS

Array = np.ndarray[Any, Any]


def random_lists(seed: int, cases: int = 40, width: int = 12) -> Lists:
    """Lists with ties, and with places that hold no item at their ends."""
    generator = np.random.default_rng(seed)
    items = np.argsort(generator.random((cases, 30)), axis=1)[:, :width]
    log_probs = -np.sort(generator.exponential(2.0, (cases, width)), axis=1)
    rewards = generator.integers(0, 6, (cases, width)).astype(np.float64)
    for row in range(0, cases, 3):
        count = int(generator.integers(0, 4))
        items[row, width - count :], log_probs[row, width - count :] = -1, -np.inf
        rewards[row, width - count :] = np.nan
    return Lists(items, log_probs, rewards, generator.integers(0, 30, cases))


def slow_rank(items: Array, keys: Array, target: int) -> int:
    kept = [(-key, place, item) for place, (item, key) in enumerate(zip(items, keys, strict=True)) if item >= 0]
    return next((rank for rank, (_, _, item) in enumerate(sorted(kept), start=1) if item == target), 0)


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_a_plain_sort(seed: int) -> None:
    lists = random_lists(seed)
    for keys in (lists.log_probs, lists.rewards, -np.nan_to_num(lists.rewards)):
        expected = [slow_rank(*row) for row in zip(lists.items, keys, lists.targets, strict=True)]
        assert target_ranks(lists, keys).tolist() == expected


def test_an_unusable_place_never_ranks_and_never_takes_a_rank() -> None:
    lists = Lists(np.array([[-1, 5, 6]]), np.zeros((1, 3)), np.array([[9.0, 1.0, 2.0]]), np.array([5]))
    assert target_ranks(lists, lists.rewards).tolist() == [2]
    assert target_ranks(lists._replace(targets=np.array([-1])), lists.rewards).tolist() == [0]


def test_mixed_keys_by_hand() -> None:
    lists = Lists(np.array([[3, 4, -1]]), np.array([[-1.0, -2.0, 0.0]]), np.array([[1.0, 5.0, np.nan]]), np.array([3]))
    keys = mixed_keys(lists, 0.5, 2.0)
    assert keys[0, :2].tolist() == [-0.75, -0.75] and keys[0, 2] == -np.inf


def test_each_half_gets_the_weight_that_the_other_half_chose() -> None:
    """In the first half the reward knows the target, in the second it is against it."""
    cases, width = 20, 12
    items = np.tile(np.arange(width), (cases, 1))
    log_probs = np.tile(-np.arange(width, dtype=np.float64), (cases, 1))
    second = np.arange(cases) >= 10
    rewards = np.zeros((cases, width))
    rewards[:, 5] = np.where(second, -100.0, 100.0)
    lists = Lists(items, log_probs, rewards, np.full(cases, 5))
    mix = cross_fitted_mix(lists, second)
    # σ is 100 √(11) / 12 = 27.6, so 5 nats are made up by a weight of 2 (7.2 nats) and not by 1 (3.6)
    assert mix.within_list_std == pytest.approx(100 * np.sqrt(11) / 12)
    assert mix.weights == (0.0, 2.0)
    ranks = target_ranks(lists, mix.keys)
    assert (ranks[~second] == 6).all() and (ranks[second] == 12).all()


def test_a_flat_reward_gets_no_weight() -> None:
    lists = random_lists(0)._replace(rewards=np.ones((40, 12)))
    mix = cross_fitted_mix(lists, np.arange(40) % 2 == 0)
    assert mix.weights == (WEIGHTS[0], WEIGHTS[0]) == (0.0, 0.0)
    assert target_ranks(lists, mix.keys).tolist() == target_ranks(lists, lists.log_probs).tolist()


def test_permuting_keeps_each_rows_values_and_leaves_the_rest() -> None:
    values = np.array([[1.0, 2.0, 3.0, 7.0], [4.0, 5.0, 6.0, 8.0]])
    real = np.array([[True, False, True, True], [False, True, True, False]])
    generator, seen = np.random.default_rng(0), []
    for _ in range(600):
        result = permuted(values, real, generator)
        assert (result[~real] == values[~real]).all()
        assert sorted(result[0, real[0]]) == [1.0, 3.0, 7.0] and sorted(result[1, real[1]]) == [5.0, 6.0]
        seen.append(tuple(result[0, real[0]]))
    counts = [seen.count(order) for order in set(seen)]
    assert len(counts) == 6  # all orders, each about 100 times: 4 standard deviations are 37
    assert all(63 <= count <= 137 for count in counts)


def test_serving_quantities_by_hand() -> None:
    log_probs = np.log(np.array([[0.4, 0.2, 0.2, 0.1]]))
    lists = Lists(np.array([[9, 8, 7, -1]]), log_probs, np.array([[1.0, 4.0, 1.0, 99.0]]), np.array([8]))
    actual = {name: values[0] for name, values in serving_quantities(lists, np.array([5])).items()}
    assert actual["policy entropy"] == pytest.approx(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)))
    assert actual["reward spread"] == pytest.approx(np.sqrt(2.0))
    assert actual["agreement of policy and ranker"] == pytest.approx(stats.spearmanr([4, 2, 2], [1, 4, 1]).statistic)
    assert actual["policy's rank of the ranker's first"] == 2 and actual["history length"] == 5


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_spearmans(seed: int) -> None:
    lists = random_lists(seed)
    actual = serving_quantities(lists, np.ones(40, dtype=np.int64))["agreement of policy and ranker"]
    for row, value in enumerate(actual):
        use = lists.usable[row]
        expected = stats.spearmanr(lists.log_probs[row, use], lists.rewards[row, use]).statistic
        assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_serving_quantities_do_not_know_the_target() -> None:
    lists = random_lists(1)
    other = lists._replace(targets=(lists.targets + 7) % 30)
    lengths = np.ones(40, dtype=np.int64)
    for before, after in zip(
        serving_quantities(lists, lengths).values(), serving_quantities(other, lengths).values(), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_lists_without_an_order_have_no_quantities() -> None:
    empty = Lists(
        np.array([[-1, -1], [3, -1]]),
        np.array([[-np.inf, -np.inf], [-1.0, -np.inf]]),
        np.ones((2, 2)),
        np.array([1, 3]),
    )
    for name, values in serving_quantities(empty, np.array([1, 1])).items():
        assert name == "history length" or np.isnan(values).all()


def test_repeated_mix_is_the_mix_of_each_halving() -> None:
    generator = np.random.default_rng(1)
    items = np.stack([generator.permutation(12)[:8] for _ in range(40)])
    lists = Lists(items, -np.sort(generator.random((40, 8))), generator.normal(size=(40, 8)), items[:, 3])
    actual = repeated_mix(lists, seed=5, halvings=3)
    halves, expected = np.random.default_rng(5), []
    for mean in actual.ndcg:
        mix = cross_fitted_mix(lists, halves.permutation(40) % 2 == 0)
        expected.append(metrics.ndcg(target_ranks(lists, mix.keys), 10))
        assert mean == pytest.approx(expected[-1].mean(), rel=1e-12)
    by_weight = np.stack([metrics.ndcg(ranks, 10) for ranks in actual.ranks])
    assert actual.mean(by_weight) == pytest.approx(np.mean(expected, axis=0), rel=1e-12)
    assert actual.shares.sum(axis=0) == pytest.approx(np.ones(40), rel=1e-12)
