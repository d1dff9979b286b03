"""Rewards made of rewards.

    mean       r(x, i) = m(x, i) - κ u(x, i),   m = (1 / K) Σ_k r_k(x, i),   u = √((1 / K) Σ_k (r_k(x, i) - m(x, i))²)
    weighted   r(x, i) = Σ_k w_k r_k(x, i)

`u` is the disagreement of an ensemble's members, the usual stand-in for its uncertainty (Lakshminarayanan et al. 2017);
with κ above 0 an item is worth what its members agree on, which slows the exploitation of their errors (Coste et al.
2023, arXiv 2310.02743). Members are taken as they are: a mean of rewards on different scales is the member of the
largest one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adagrpo.rewards.base import Reward
from adagrpo.types import Histories

__all__ = ["MeanReward", "WeightedReward"]


class MeanReward:
    """Implements `adagrpo.rewards.base.Reward`; `spread` is its uncertainty."""

    def __init__(self, members: Sequence[Reward], pessimism: float = 0.0) -> None:
        if not members:
            raise ValueError("a mean needs at least one member")
        self.members, self.pessimism = tuple(members), pessimism

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        scores = self._scores(histories, items)
        mean = scores.mean(0)
        return (mean - self.pessimism * scores.std(0, correction=0) if self.pessimism else mean).float()

    def spread(self, histories: Histories, items: Tensor) -> Tensor:
        """(B, N) float32 standard deviation of the members' scores; unspecified at -1."""
        return self._scores(histories, items).std(0, correction=0).float()

    def _scores(self, histories: Histories, items: Tensor) -> Tensor:  # (K, B, N)
        return torch.stack([member.score(histories, items).double() for member in self.members])


class WeightedReward:
    """Implements `adagrpo.rewards.base.Reward`."""

    def __init__(self, members: Sequence[Reward], weights: Sequence[float]) -> None:
        if not members or len(members) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(members)} members; give one each, at least one")
        self.members, self.weights = tuple(members), tuple(weights)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        parts = zip(self.members, self.weights, strict=True)
        scores = [weight * member.score(histories, items).double() for member, weight in parts]
        return torch.stack(scores).sum(0).float()
