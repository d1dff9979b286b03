"""The protocol of a reward: a score for each (history, item), higher is better, on any scale; checked scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.types import Histories


class Reward(Protocol):
    """A reward model, typically a production ranker."""

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Return (B, N) float32 scores of items (B, N) int64 for `B` histories; unspecified at item -1, for none."""


class WeightedReward:
    """A weighted sum of rewards, which are not rescaled."""

    def __init__(self, members: Sequence[Reward], weights: Sequence[float]) -> None:
        if not members or len(members) != len(weights):
            raise ValueError(f"{len(weights)} weights for {len(members)} members; give one each, at least one")
        self.members, self.weights = tuple(members), tuple(weights)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`."""
        parts = zip(self.members, self.weights, strict=True)
        scores = [weight * member.score(histories, items).double() for member, weight in parts]
        return torch.stack(scores).sum(0).float()


AT_ONCE = 2**17  # items that a reward scores per call, for a whole catalogue


class BadReward(ValueError):
    """A reward returned the wrong shape."""


@torch.no_grad()
def ask_reward(reward: Reward, histories: Histories, items: Tensor) -> Tensor:
    """Score items (B, N) int64, -1 for none, in one call, to (B, N) float32, NaN at -1; no call without any.

    BadReward if the shape is not (B, N); NotFinite, of the reward or the members at fault, for a NaN or infinite score.
    """
    if not bool((items >= 0).any()):  # no rollout of a whole step names an item
        return torch.full(items.shape, torch.nan, device=items.device)
    scores = reward.score(histories, items)
    if scores.shape != items.shape:
        raise BadReward(f"the reward must return {tuple(items.shape)} scores, got {tuple(scores.shape)}")
    real = items >= 0
    scores = scores.float().masked_fill(~real, torch.nan)
    bad = int((real & ~scores.isfinite()).sum())
    if bad:
        named = " and ".join(_culprits(reward, histories, items))
        of = f"{bad} of {int(real.sum())} items"
        raise NotFinite("reward", f"the reward {named} gave NaN or infinity for {of}; scores must be finite")
    return scores


def ask_catalogue(reward: Reward, histories: Histories, items: Tensor) -> Tensor:  # items (B, V) -> (B, V)
    """Call `ask_reward` for many items, a few histories at a time."""
    rows, size = torch.arange(len(items), device=items.device), max(1, AT_ONCE // items.shape[1])
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return torch.cat([ask_reward(reward, histories.rows(part), items[part]) for part in parts])


def ask_members(reward: Reward, histories: Histories, items: Tensor) -> Tensor:  # items (B, N) -> (B, N, M)
    """Call `ask_reward` for each of the `M` members of a sum; another reward is its only member."""
    members = reward.members if isinstance(reward, WeightedReward) else (reward,)
    return torch.stack([ask_reward(member, histories, items) for member in members], dim=-1)


def _culprits(reward: Reward, histories: Histories, items: Tensor) -> list[str]:
    """Names of the members with scores that are not finite, or of the reward itself."""
    names = [
        name
        for member in getattr(reward, "members", ())
        if not bool((member.score(histories, items).isfinite() | (items < 0)).all())
        for name in _culprits(member, histories, items)
    ]
    return names or [str(getattr(reward, "name", type(reward).__name__))]


class CrossFitted:
    """Scores each history by a reward that was not fitted on its user (Chernozhukov et al. 2018).

        score(x_u, i) = RM_fold(u)(x_u, i)            RM_j fitted on the users u with fold(u) ≠ j

    Folds differ in scale; only the threshold for groups without differences spans folds.
    """

    def __init__(self, rewards: Sequence[Reward], fold_of_user: NDArray[np.int64]) -> None:
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
