"""Control rewards: policies in codes of their own, and permuted scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adagrpo.types import Histories
from research.rewards.controls import PoliciesReward, ShuffledReward

HISTORIES = Histories(torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 1]))


class Table:
    """A policy whose log-probability of a code is in a table, by the last item of the history."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def encode(self, histories: Histories) -> Any:
        return histories.items[torch.arange(len(histories.lengths)), histories.lengths - 1]

    def score(self, context: Any, codes: Tensor) -> Tensor:
        return self.table[context][:, None, :].expand(-1, codes.shape[1], -1).gather(2, codes)


def test_policies_read_items_by_numbers_and_codes_of_their_own() -> None:
    one, other = torch.rand(3, 4), torch.rand(3, 4)
    codes = [torch.tensor([[0, 1], [2, 3], [1, 1]]), torch.tensor([[3], [2], [0]])]
    rows = [torch.tensor([0, 1, 2]), torch.tensor([2, 0, 1])]
    items = torch.tensor([[0, 2], [1, -1]])
    actual = PoliciesReward([Table(one), Table(other)], codes, rows).score(HISTORIES, items)
    for b, last in enumerate((1, 2)):
        for n in range(2):
            if (item := int(items[b, n])) >= 0:
                first = sum(one[last, code] for code in codes[0][item])
                own, own_last = int(rows[1][item]), int(rows[1][last])
                second = other[own_last, codes[1][own][0]]
                assert float(actual[b, n]) == pytest.approx(float(first + second) / 2, rel=1e-6)
    with pytest.raises(ValueError, match="give one each"):
        PoliciesReward([], [], [])


class Count:
    def score(self, histories: Histories, items: Tensor) -> Tensor:
        return items.float()


def test_shuffled_scores_are_the_same_set_in_an_order_that_says_nothing() -> None:
    count = 500
    histories = Histories(torch.arange(count)[:, None], torch.ones(count, dtype=torch.int64))
    items = torch.arange(10).repeat(count, 1)
    items[:, 7] = -1
    actual = ShuffledReward(Count()).score(histories, items)
    real = items[0] >= 0
    assert torch.equal(actual[:, real].sort(1).values, items[:, real].float())
    assert torch.equal(actual, ShuffledReward(Count()).score(histories, items))
    assert abs(np.corrcoef(actual[:, real].ravel(), items[:, real].ravel())[0, 1]) < 4 / np.sqrt(9 * count)
    assert not torch.equal(actual, ShuffledReward(Count(), 1).score(histories, items))
