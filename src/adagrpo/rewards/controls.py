"""Rewards that a gain is held against: a count, the policy's own ensemble, and a reward whose scores are dealt anew.

    feature    r(x, i) = one column of `adagrpo.rewards.features`; `knn_history` is item-kNN, `popularity` popularity
    policies   r(x, i) = (1 / K) Σ_k log π_k(codes_k(i) | x)        each policy reads the item in codes of its own
    shuffled   the scores of a history's items, given to these items in a random order

Who distils a ranker and gains has shown that some teacher helps. With these it is seen which: what a count knows, what
other seeds of the same policy know, and what an order without meaning does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adagrpo.rewards.features import FEATURES, Features
from adagrpo.rewards.noise import NoiseReward
from adagrpo.rewards.protocol import Reward
from adagrpo.types import Histories

__all__ = ["FeatureReward", "PoliciesReward", "ShuffledReward"]


class FeatureReward:
    """Implements `adagrpo.rewards.protocol.Reward`; a history's user is left out of all counts."""

    def __init__(self, features: Features, name: str) -> None:
        """Take one of `FEATURES`."""
        self.features, self.column = features, FEATURES.index(name)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        users = None if histories.users is None else histories.users.cpu().numpy()
        padded, lengths, wanted = (part.cpu().numpy() for part in (histories.items, histories.lengths, items))
        if not wanted.size:
            return torch.zeros(items.shape, device=items.device)
        scores = self.features.table(padded, lengths, wanted, users)[:, :, self.column]
        return torch.from_numpy(np.ascontiguousarray(scores)).to(items.device)


class _Scores(Protocol):
    """What is asked of a policy, see `adagrpo.policies.policy.Policy`."""

    def encode(self, histories: Histories) -> Any: ...

    def score(self, context: Any, codes: Tensor) -> Tensor: ...


class PoliciesReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        policies: Sequence[_Scores],
        codes: Sequence[Tensor],  # K tensors of (V, L_k)
        rows: Sequence[Tensor],  # K tensors of (V,)
    ) -> None:
        """Take policies.

        Args:
            policies: K of them.
            codes: (V, L_k) int64 of each policy, by its own numbers of items.
            rows: (V,) int64 of each policy, what it calls each item.
        """
        if not policies or not len(policies) == len(codes) == len(rows):
            raise ValueError(f"{len(codes)} lists of codes for {len(policies)} policies; give one each, at least one")
        self.policies, self.codes, self.rows = tuple(policies), tuple(codes), tuple(rows)

    @torch.no_grad()
    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        total = torch.zeros(items.shape, dtype=torch.float64, device=items.device)
        for policy, codes, rows in zip(self.policies, self.codes, self.rows, strict=True):
            context = policy.encode(Histories(rows[histories.items], histories.lengths))
            total += policy.score(context, codes[rows[items.clamp(min=0)]]).double().sum(-1)
        return (total / len(self.policies)).float()


class ShuffledReward:
    """Implements `adagrpo.rewards.protocol.Reward`; a score depends on which other items are asked about with it."""

    def __init__(self, member: Reward, seed: int = 0) -> None:
        """Say whose scores, and which order: that of `adagrpo.rewards.noise` of the seed."""
        self.members = (member,)
        self.order = NoiseReward(seed)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items for `B` histories, see `Reward.score`."""
        real = items >= 0
        scores = self.members[0].score(histories, items).float().masked_fill(~real, -torch.inf)
        places = self.order.score(histories, items).masked_fill(~real, -torch.inf).argsort(dim=1, descending=True)
        return torch.empty_like(scores).scatter(1, places, scores.sort(dim=1, descending=True).values)
