"""Third step of a group: what the gate reads of it, difficulty, discriminability and whether its rewards give an order.

Difficulty is read from the rollouts as they were drawn, before a logged item is injected; the others from the rewards.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.score import GroupRewards, ScoredGroups
from adagrpo.objective import degenerate_groups, discriminability, rollout_miss

__all__ = ["Evidence", "gather_evidence", "running_spread"]


class Evidence(NamedTuple):
    """What the diagnostics say of `B` groups."""

    difficulty: Tensor  # (B,) NaN at the ends of histories
    q: Tensor  # (B,) discriminability, NaN at the ends of histories
    degenerate: Tensor  # (B,) bool, the group's rewards give no order


def gather_evidence(
    groups: ScoredGroups, rewards: GroupRewards, options: ObjectiveConfig, *, spread: Tensor
) -> Evidence:
    """Read difficulty, discriminability and degeneracy of every group.

    Args:
        groups: `B` groups.
        rewards: of the groups, as they are or shuffled.
        options: the share of `spread` below which a group's rewards count as equal.
        spread: () standard deviation of the rewards.
    """
    items = groups.rollouts.items
    degenerate = degenerate_groups(rewards.rollouts, items, spread=spread, relative_floor=options.reward_floor)
    if groups.target_codes is None:
        nothing = torch.full(degenerate.shape, torch.nan, device=degenerate.device)
        return Evidence(nothing, nothing, degenerate)
    q = discriminability(rewards.target, rewards.rollouts, items, rewards.negatives, groups.negatives, groups.targets).q
    return Evidence(rollout_miss(groups.sampled.items, groups.targets), q, degenerate)


def running_spread(before: float, rewards: Tensor) -> float:
    """The running standard deviation of rewards: .9 of what it was and .1 of what it is now.

    Args:
        before: its value so far, 0 before the first step.
        rewards: (N,) of a step's valid rollouts; fewer than two change nothing.

    Example:
        >>> running_spread(0.0, torch.tensor([1.0, 3.0, 5.0])), running_spread(1.0, torch.tensor([1.0, 3.0, 5.0]))
        (2.0, 1.1)
    """
    if len(rewards) < 2:
        return before
    now = float(rewards.std())
    if not math.isfinite(now):  # the square of what float32 can hold may be beyond it
        now = float(rewards.double().std())
    return now if before == 0.0 else 0.9 * before + 0.1 * now
