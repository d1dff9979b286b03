"""Noise as a reward: standard normal, the same whenever it is asked for, and new for every history, item and seed."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from adagrpo.rewards import NoiseReward
from adagrpo.types import Histories


def histories(count: int) -> Histories:
    rows = torch.arange(count)
    return Histories(torch.stack([rows % 100, rows // 100], 1), torch.full((count,), 2))


def test_scores_are_standard_normal_and_unrelated() -> None:
    items = torch.arange(50).repeat(400, 1)
    actual = NoiseReward().score(histories(400), items).double().numpy()
    assert stats.kstest(actual.ravel(), "norm").pvalue > 0.01
    other = NoiseReward(1).score(histories(400), items).double().numpy()
    pairs = [(actual[:-1], actual[1:]), (actual[:, :-1], actual[:, 1:]), (actual, other)]
    for left, right in pairs:  # of neighbouring histories, of neighbouring items, of two seeds
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4 / np.sqrt(left.size)


def test_a_score_is_a_function_of_history_and_item() -> None:
    reward = NoiseReward(3)
    wide = Histories(torch.tensor([[5, 6, 0, 0], [6, 5, 1, 2]]), torch.tensor([2, 4]))
    narrow = Histories(torch.tensor([[5, 6]]), torch.tensor([2]))  # padded otherwise, and asked about in another order
    actual = reward.score(wide, torch.tensor([[1, 2, 7], [1, 2, 7]]))
    again = reward.score(narrow, torch.tensor([[7, -1, 1]]))
    assert again[0, 0] == actual[0, 2] and again[0, 2] == actual[0, 0]
    assert not torch.equal(actual[0], actual[1])
    other_way_round = Histories(wide.items.flip(1), wide.lengths)
    assert not torch.equal(reward.score(other_way_round, torch.tensor([[1, 2, 7], [1, 2, 7]])), actual)
