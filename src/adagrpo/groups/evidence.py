"""Third step of a group: the diagnostics that a gate reads.

Difficulty is measured on the rollouts before a logged item is injected; everything else on the rewards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.score import GroupRewards, ScoredGroups
from adagrpo.objective import Evidence, degenerate_groups, discriminability, reward_std, rollout_miss, share_above


def gather_evidence(
    groups: ScoredGroups, rewards: GroupRewards, options: ObjectiveConfig, *, spread: Tensor
) -> Evidence:
    """Compute every diagnostic of every group.

    Args:
        spread: scalar, the running standard deviation of rewards.
    """
    items, targets = groups.rollouts.items, groups.targets
    degenerate = degenerate_groups(rewards.rollouts, items, spread=spread, relative_floor=options.reward_floor)
    std = reward_std(rewards.rollouts, items >= 0)
    nothing = torch.full(degenerate.shape, torch.nan, device=degenerate.device)
    if groups.target_codes is None:
        return Evidence(nothing, nothing, nothing.unsqueeze(1)[:, :0], nothing, nothing, degenerate, std)
    above_policy, sampled = nothing, groups.sampled
    if groups.target_log_probs is not None:
        own, drawn = groups.target_log_probs.double().sum(1), sampled.log_probs.double().sum(2)
        above_policy = share_above(own.unsqueeze(1), targets.unsqueeze(1), drawn, sampled.items).squeeze(1).float()
    above = share_above(
        torch.cat([rewards.target.unsqueeze(1), rewards.negatives], dim=1),
        torch.cat([targets.unsqueeze(1), groups.negatives], dim=1),
        rewards.rollouts,
        items,
    )
    q = discriminability(rewards.target, rewards.rollouts, items, rewards.negatives, groups.negatives, targets).q
    miss = rollout_miss(sampled.items, targets)
    return Evidence(above_policy, above[:, 0], above[:, 1:], miss, q, degenerate, std)


def running_spread(before: float, rewards: Tensor) -> float:
    """Update the running standard deviation of rewards, an exponential average with decay 0.9.

    Args:
        before: the value so far, 0 before the first step.
        rewards: (N,) of a step's valid rollouts; fewer than two change nothing.

    Example:
        >>> running_spread(0.0, torch.tensor([1.0, 3.0, 5.0])), running_spread(1.0, torch.tensor([1.0, 3.0, 5.0]))
        (2.0, 1.1)
    """
    if len(rewards) < 2:
        return before
    now = float(rewards.std())
    if not math.isfinite(now):  # squares may overflow in float32
        now = float(rewards.double().std())
    return now if before == 0.0 else 0.9 * before + 0.1 * now
