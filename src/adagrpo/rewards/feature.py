"""One column of `adagrpo.rewards.features` as a reward, such as item-kNN (`knn_history`) or `popularity`."""

from __future__ import annotations

import torch
from torch import Tensor

from adagrpo.rewards.features import FEATURES, Features
from adagrpo.types import Histories


class FeatureReward:
    """Implements `adagrpo.rewards.protocol.Reward`; each history's user is left out of all counts."""

    def __init__(self, features: Features, name: str) -> None:
        self.features, self.column = features, FEATURES.index(name)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`."""
        if not items.numel():
            return torch.zeros(items.shape, device=items.device)
        return torch.from_numpy(self.features.of(histories, items)[:, :, self.column].copy()).to(items.device)
