from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adagrpo.rewards.protocol import WeightedReward
from adagrpo.types import Histories

HISTORIES = Histories(torch.tensor([[0], [1]]), torch.tensor([1, 1]))
ITEMS = torch.tensor([[0, 1, 2], [2, -1, 0]])


class Fixed:
    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = torch.tensor(scores)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        return self.scores


MEMBERS = [
    Fixed([[1.0, 2.0, 6.0], [0.5, torch.nan, -1.0]]),
    Fixed([[3.0, 2.0, 0.0], [1.5, torch.nan, 5.0]]),
    Fixed([[2.0, 2.0, 0.0], [4.0, torch.nan, 2.0]]),
]


def test_a_weighted_sum() -> None:
    actual = WeightedReward(MEMBERS, [2.0, -1.0, 0.5]).score(HISTORIES, ITEMS)
    torch.testing.assert_close(actual[0], torch.tensor([0.0, 3.0, 12.0]))
    assert float(actual[1, 0]) == 1.5 and float(actual[1, 2]) == -6.0


def test_wrong_numbers_of_members() -> None:
    with pytest.raises(ValueError, match="2 weights for 3 members"):
        WeightedReward(MEMBERS, [1.0, 2.0])
