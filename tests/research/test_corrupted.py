"""A reward that is right for some and wrong for others: in a small marketplace, against the true utility."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adagrpo.data.simulation.marketplace import simulate
from adagrpo.data.simulation.world import Marketplace
from adagrpo.types import Histories
from research.rewards.corrupted import CorruptedReward, fewest, item_groups

USERS, ITEMS, ROLLOUTS = 200, 150, 16


class Utility:
    """The truth itself, as a reward."""

    def __init__(self) -> None:
        self.simulation = simulate(Marketplace(users=USERS, items=ITEMS, steps=5, slate_size=5, cold_share=0.0))

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        assert histories.users is not None
        truth = self.simulation.truth.utility(histories.users.numpy(), items.clamp(min=0).numpy())
        return torch.from_numpy(truth).float()


@pytest.fixture(scope="module")
def utility() -> Utility:
    return Utility()


def accuracy(scores: Tensor, truth: Tensor, kept: Tensor) -> float:
    """The share of pairs, of which both are kept, that the scores order as the truth does; ties count one half."""
    ours, true = (part[:, :, None] - part[:, None, :] for part in (scores, truth))
    pairs = (kept[:, :, None] & kept[:, None, :]) & (true > 0)
    return float(((ours > 0).float() + 0.5 * (ours == 0).float())[pairs].mean())


@pytest.mark.parametrize("how", ["shuffled", "inverted"])
@pytest.mark.parametrize("by", ["item_group", "exposure", "user_group"])
def test_pairs_of_the_right_part_are_right_and_those_of_the_wrong_part_are_not(
    utility: Utility, by: str, how: Any
) -> None:
    items = torch.from_numpy(np.random.default_rng(0).integers(0, ITEMS, (USERS, ROLLOUTS)))
    items[:, 3] = -1
    histories = Histories(items[:, :2], torch.full((USERS,), 2), torch.arange(USERS))
    counts = np.bincount(utility.simulation.impressions["item_id"].cast(str).str.slice(1).cast(int), minlength=ITEMS)
    where: dict[str, Any] = {
        "item_group": {"items": item_groups(utility.simulation.items["attributes"].to_list(), 0.5)},
        "exposure": {"items": fewest(counts, 0.5)},
        "user_group": {"users": np.arange(USERS) < USERS // 2},
    }[by]
    reward = CorruptedReward(utility, how=how, **where)
    truth, scores, wrong = (
        utility.score(histories, items),
        reward.score(histories, items),
        reward.wrong(histories, items),
    )
    real = items >= 0
    assert accuracy(scores, truth, real & ~wrong) == 1.0
    if how == "inverted":
        assert accuracy(scores, truth, wrong) < 0.01
    else:
        assert accuracy(scores, truth, wrong) == pytest.approx(0.5, abs=0.03)  # of about 10,000 pairs
    assert 0.3 < float(wrong[real].float().mean()) < 0.7
    again = reward.score(histories.rows(torch.arange(5)), items[:5])
    assert torch.equal(again[real[:5]], scores[:5][real[:5]])


def test_strength_mixes_and_zero_changes_nothing(utility: Utility) -> None:
    items = torch.tensor([[0, 1, 2, 3]])
    histories = Histories(items[:, :1], torch.tensor([1]), torch.tensor([0]))
    wrong = np.arange(ITEMS) < 2
    truth = utility.score(histories, items)
    assert torch.equal(CorruptedReward(utility, items=wrong, strength=0.0).score(histories, items), truth)
    half = CorruptedReward(utility, items=wrong, strength=0.5, how="inverted").score(histories, items)
    order = truth[0].argsort()
    mirrored = {int(item): float(truth[0, order[3 - place]]) for place, item in enumerate(order)}
    expected = [(float(truth[0, i]) + mirrored[i]) / 2 if i < 2 else float(truth[0, i]) for i in range(4)]
    assert half[0].tolist() == pytest.approx(expected)


def test_a_history_of_nobody_is_judged_by_its_length(utility: Utility) -> None:
    reward = CorruptedReward(utility, users=np.ones(USERS, np.bool_), shortest=2)
    histories = Histories(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([2, 3]))
    assert reward.wrong(histories, torch.tensor([[1, -1], [1, 2]])).tolist() == [[True, False], [False, False]]
