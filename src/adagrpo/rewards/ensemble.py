"""A weighted sum of rewards.

    r(x, i) = Σ_k w_k r_k(x, i)

Members are not rescaled: at equal weights the one with the largest scale dominates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adagrpo.rewards.protocol import Reward
from adagrpo.types import Histories


class WeightedReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(self, members: Sequence[Reward], weights: Sequence[float]) -> None:
        if not members or len(members) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(members)} members; give one each, at least one")
        self.members, self.weights = tuple(members), tuple(weights)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`."""
        parts = zip(self.members, self.weights, strict=True)
        scores = [weight * member.score(histories, items).double() for member, weight in parts]
        return torch.stack(scores).sum(0).float()
