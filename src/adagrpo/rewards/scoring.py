"""Checked scoring by a reward: a NaN or infinite score is an error that names the reward, never replaced."""

from __future__ import annotations

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.rewards.ensemble import WeightedReward
from adagrpo.rewards.protocol import Reward
from adagrpo.types import Histories

AT_ONCE = 2**17  # items that a reward scores per call, for a whole catalogue


class BadReward(ValueError):
    """A reward returned the wrong shape."""


@torch.no_grad()
def ask_reward(
    reward: Reward,
    histories: Histories,
    items: Tensor,  # (B, N) int64, -1 where there is nothing to score
) -> Tensor:  # (B, N) float32, NaN at -1
    """Score all items in one call and check the result; without any item the reward is not called.

    Raises:
        BadReward: the shape is not (B, N).
        NotFinite: the score of an item is NaN or infinite; names the reward or the members at fault.
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


def ask_catalogue(
    reward: Reward,
    histories: Histories,
    items: Tensor,  # (B, V)
) -> Tensor:  # (B, V)
    """Call `ask_reward` for many items, a few histories at a time."""
    rows, size = torch.arange(len(items), device=items.device), max(1, AT_ONCE // items.shape[1])
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return torch.cat([ask_reward(reward, histories.rows(part), items[part]) for part in parts])


def ask_members(
    reward: Reward,
    histories: Histories,
    items: Tensor,  # (B, N)
) -> Tensor:  # (B, N, M)
    """Call `ask_reward` for each of the `M` members of a weighted sum; any other reward is its only member."""
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
