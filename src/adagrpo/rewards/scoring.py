"""Asking a reward, once for all items, and checking what it answers.

A score of NaN or infinity is an error that names who gave it; it is never replaced by something plausible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.rewards.ensemble import WeightedReward
from adagrpo.rewards.protocol import Reward
from adagrpo.types import Histories

AT_ONCE = 2**17  # items that a reward is asked about at a time, of a whole catalogue


class BadReward(ValueError):
    """A reward returned the wrong shape."""


@torch.no_grad()
def ask_reward(
    reward: Reward,
    histories: Histories,
    items: Tensor,  # (B, N) int64, -1 where there is nothing to score
) -> Tensor:  # (B, N) float32, NaN at -1
    """Ask the reward once for all items, and check the answer. Where there is no item at all, it is not asked.

    Args:
        histories: `B` histories.
        items: (B, N) int64, -1 where there is nothing to score.

    Returns:
        (B, N) float32, NaN at -1.

    Raises:
        BadReward: the shape is not (B, N).
        NotFinite: the score of a real item is NaN or infinite; the reward, or the members of it that did so, are named.
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
    """`ask_reward` about very many items, a few histories at a time.

    Raises:
        BadReward, NotFinite: see `ask_reward`.
    """
    rows, size = torch.arange(len(items), device=items.device), max(1, AT_ONCE // items.shape[1])
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return torch.cat([ask_reward(reward, histories.rows(part), items[part]) for part in parts])


def ask_members(
    reward: Reward,
    histories: Histories,
    items: Tensor,  # (B, N)
) -> Tensor:  # (B, N, M)
    """Ask each member of a sum of rewards apart, unweighted; a reward that is no sum is its own and only member.

    Args:
        histories: `B` histories.
        items: (B, N) int64, -1 where there is nothing to score.

    Returns:
        (B, N, M) float32, NaN at -1.

    Raises:
        BadReward, NotFinite: see `ask_reward`.
    """
    members = reward.members if isinstance(reward, WeightedReward) else (reward,)
    return torch.stack([ask_reward(member, histories, items) for member in members], dim=-1)


def _culprits(reward: Reward, histories: Histories, items: Tensor) -> list[str]:
    """Names of the members whose own scores are not finite; of the reward itself where it has none, or none of them."""
    names = [
        name
        for member in getattr(reward, "members", ())
        if not bool((member.score(histories, items).isfinite() | (items < 0)).all())
        for name in _culprits(member, histories, items)
    ]
    return names or [str(getattr(reward, "name", type(reward).__name__))]
