"""A count as a reward, against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adagrpo.rewards import FeatureReward
from adagrpo.rewards.features import Features
from adagrpo.types import Histories, Ragged

HISTORIES = Histories(torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 1]))


def test_a_feature_is_its_column() -> None:
    training = Ragged(np.array([0, 1, 0, 1, 2, 3], np.int32), np.array([0, 2, 5, 6]))
    features = Features(training, [[]] * 4, [""] * 4)
    items = torch.tensor([[1, 2, 3], [0, 1, -1]])
    popular = FeatureReward(features, "popularity").score(HISTORIES, items)
    # two users have item 1, of whom the history itself, which holds it, is taken out
    assert popular[0].tolist() == pytest.approx(np.log1p([1, 1, 1]).tolist())
    near = FeatureReward(features, "knn_history").score(HISTORIES, items)
    # after item 2 alone: s = 1 / sqrt(2 · 1) for both of its neighbours
    assert near[1, :2].tolist() == pytest.approx([1 / np.sqrt(2)] * 2)
