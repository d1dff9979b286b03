"""Cross-fitting: the fold that judges is the user's own, whatever stands beside it in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adagrpo.data.splits import for_some_users, leave_one_out, user_folds
from adagrpo.rewards import CrossFitted
from adagrpo.types import Histories


class Constant:
    """Scores every item by its own number and the fold's; remembers whom it judged."""

    def __init__(self, fold: int) -> None:
        self.fold = fold
        self.seen: list[int] = []

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        assert histories.users is not None and len(histories.users) == len(items) == len(histories.items)
        self.seen += histories.users.tolist()
        last = histories.items.gather(1, histories.lengths.unsqueeze(1) - 1)
        return (100.0 * self.fold + last + items / 10).masked_fill(items < 0, torch.nan)


def test_each_row_is_scored_by_its_users_fold() -> None:
    folds = np.array([1, 0, 2, 0, 1])
    rankers = [Constant(fold) for fold in range(3)]
    users = torch.tensor([4, 1, 1, 2, 0, 3])
    histories = Histories(torch.arange(12).view(6, 2), torch.tensor([1, 2, 1, 2, 1, 2]), users)
    items = torch.tensor([[1, 2, -1], [3, 4, 5]] * 3)
    scores = CrossFitted(rankers, folds).score(histories, items)
    for row in range(6):
        last = histories.items[row, histories.lengths[row] - 1]
        for place, item in enumerate(items[row].tolist()):
            expected = 100 * folds[users[row]] + int(last) + item / 10
            assert scores[row, place].isnan() if item < 0 else float(scores[row, place]) == pytest.approx(expected)
    assert [sorted(ranker.seen) for ranker in rankers] == [[1, 1, 3], [0, 4], [2]]
    alone = [CrossFitted(rankers, folds).score(histories.rows(torch.tensor([r])), items[[r]]) for r in range(6)]
    torch.testing.assert_close(torch.cat(alone), scores, rtol=0, atol=0, equal_nan=True)


def test_a_fold_is_never_guessed() -> None:
    reward = CrossFitted([Constant(0), Constant(1)], np.array([0, 1]))
    with pytest.raises(ValueError, match="histories with users"):
        reward.score(Histories(torch.ones(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)), torch.ones(1, 1))
    with pytest.raises(ValueError, match="numbers of the 2 rewards"):
        CrossFitted([Constant(0), Constant(1)], np.array([0, 2]))


def test_folds_are_a_function_of_seed_and_user() -> None:
    folds = user_folds(10_000, 4, seed=3)
    assert np.array_equal(user_folds(100, 4, seed=3), folds[:100])  # whoever else there is
    assert np.abs(np.bincount(folds, minlength=4) - 2500).max() < 5 * np.sqrt(10_000 * 3 / 16)
    assert (user_folds(10_000, 4, seed=4) == folds).mean() == pytest.approx(0.25, abs=0.03)


def test_folds_have_nothing_to_do_with_who_is_evaluated() -> None:
    split = for_some_users(leave_one_out(np.full(10_000, 6)), 1000, seed=3)
    in_folds = np.bincount(user_folds(10_000, 5, seed=3)[split.test_positions >= 0], minlength=5)
    assert np.abs(in_folds - 200).max() < 5 * np.sqrt(1000 * 4 / 25)
