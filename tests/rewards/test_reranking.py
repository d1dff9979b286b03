"""The unit, the grid and the choice of the reward's weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adagrpo.rewards.reranking import WEIGHTS, best_weight, edge_warning, mixed_scores, within_list_std


def test_the_spread_is_that_within_lists() -> None:
    """Variances 1 and 4, of lists whose means differ by 1,000; a list without an item counts for nothing."""
    items = np.array([[1, 2, -1], [1, 2, -1], [-1, -1, -1]])
    rewards = np.array([[0.0, 2.0, np.nan], [1000.0, 1004.0, np.nan], [np.nan, np.nan, np.nan]])
    assert within_list_std(items, rewards) == pytest.approx(np.sqrt(2.5), rel=1e-12)
    assert within_list_std(items, np.ones((3, 3))) == 1.0
    assert within_list_std(np.full((2, 3), -1), np.ones((2, 3))) == 1.0


def test_a_reward_in_another_unit_has_the_same_order_at_the_same_weight() -> None:
    generator = np.random.default_rng(0)
    items, log_probs = np.arange(40).reshape(4, 10), generator.normal(size=(4, 10)).astype(np.float32)
    rewards = generator.normal(size=(4, 10)).astype(np.float32)
    one, other = (
        mixed_scores(log_probs, values, 2.0, within_list_std(items, values)) for values in (rewards, 64 * rewards)
    )
    assert np.array_equal(one.argsort(axis=1), other.argsort(axis=1))


def test_arrays_and_tensors_give_the_same_bits() -> None:
    generator = np.random.default_rng(1)
    log_probs, rewards = (generator.normal(size=(50, 20)).astype(np.float32) for _ in range(2))
    for weight in WEIGHTS:
        served = mixed_scores(torch.from_numpy(log_probs), torch.from_numpy(rewards), weight, 0.37)
        assert np.array_equal(mixed_scores(log_probs, rewards, weight, 0.37), served.numpy())


def test_the_grid_is_wide_and_its_end_is_said() -> None:
    assert WEIGHTS == (0, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64)
    values = np.ones(3)
    assert best_weight({1.0: values, 0.5: values, 2.0: values - 1}) == 0.5
    assert edge_warning(32.0) is None
    assert "64 spreads, is the largest that is tried" in str(edge_warning(64.0))
