"""Cross-fitting (Chernozhukov et al. 2018): each history is scored by a reward that was not fitted on its user.

    score(x_u, i) = RM_fold(u)(x_u, i)            RM_j fitted on the users u with fold(u) ≠ j

Folds differ in scale: advantages and discriminability are computed within a history, and only the threshold for groups
without differences spans folds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.rewards.protocol import Reward
from adagrpo.types import Histories


class CrossFitted:
    """Implements `adagrpo.rewards.protocol.Reward` for histories with users."""

    def __init__(
        self,
        rewards: Sequence[Reward],
        fold_of_user: NDArray[np.int64],  # (U,)
    ) -> None:
        if len(fold_of_user) and not 0 <= fold_of_user.min() <= fold_of_user.max() < len(rewards):
            raise ValueError(f"fold_of_user must hold numbers of the {len(rewards)} rewards")
        self.rewards = tuple(rewards)
        self.fold_of_user = torch.from_numpy(fold_of_user)  # (U,)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; the histories must have users."""
        if histories.users is None:
            raise ValueError("a cross-fitted reward needs histories with users")
        folds = self.fold_of_user.to(items.device)[histories.users]  # (B,)
        scores = torch.full(items.shape, torch.nan, device=items.device)
        for fold, reward in enumerate(self.rewards):
            rows = (folds == fold).nonzero().squeeze(1)
            if len(rows):
                part = Histories(histories.items[rows], histories.lengths[rows], histories.users[rows])
                scores[rows] = reward.score(part, items[rows]).float()
        return scores
