"""Second step of a group: the rewards of its target, rollouts and negatives.

    pairs(b) = {y_b} ∪ {item(o_bg) valid} ∪ {n_b1 .. n_bM}         each distinct (x_b, item) is scored once

Negatives are items of other samples, and neither the sample's own logged item nor in its history: `rollouts`, generated
for the others and drawn as often as they occur there, or `targets`, their logged items, each as likely. An invalid
rollout has no slot and its reward is NaN. `shuffled` scores are a control for the content of the reward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.groups.draw import Division, DrawnGroups, undivided
from adagrpo.objective.gates import NegativeSource
from adagrpo.rewards import Reward, ask_reward
from adagrpo.types import Histories, Rollouts


def in_batch_negatives(
    targets: Tensor,  # (B,)
    histories: Histories,
    uniforms: Tensor,  # (B, B) in [0, 1), column `j` for the `j`-th distinct target; the `M` lowest eligible ones win
    count: int,
) -> Tensor:  # (B, M) int64, -1 where too few are eligible
    """Draw `M` negatives per sample uniformly, without replacement, from the batch's distinct targets."""
    distinct = torch.unique(targets)  # (D,) ascending
    priority = uniforms[:, : len(distinct)].masked_fill(_barred(distinct, targets, histories), torch.inf)
    return _lowest(distinct, priority, count)


class RolloutPool(NamedTuple):
    """The distinct items among the rollouts of a batch."""

    items: Tensor  # (D,) int64, ascending
    counts: Tensor  # (B, D) int64, how many rollouts of each sample name them


def distinct_rollouts(items: Tensor) -> RolloutPool:
    """Count the rollouts of each sample by item."""
    distinct = torch.unique(items[items >= 0])
    counts = items.new_zeros(len(items), len(distinct) + 1)  # the last column is for invalid rollouts
    column = torch.searchsorted(distinct, items).masked_fill(items < 0, len(distinct))
    return RolloutPool(distinct, counts.scatter_add_(1, column, torch.ones_like(items))[:, :-1])


# targets (B,); uniforms (B, D) in [0, 1) -> (B, M) int64, -1 where too few are eligible
def other_rollouts(targets: Tensor, histories: Histories, pool: RolloutPool, uniforms: Tensor, count: int) -> Tensor:
    """Draw `M` distinct items per sample from the rollouts of the other samples, by their frequency there."""
    others = pool.counts.sum(0, keepdim=True) - pool.counts  # (B, D)
    # the lowest of exponential variables with these rates are a draw without replacement, proportional to the rates
    priority = -torch.log1p(-uniforms) / others.clamp(min=1)
    barred = _barred(pool.items, targets, histories) | (others == 0)
    return _lowest(pool.items, priority.masked_fill(barred, torch.inf), count)


def _barred(distinct: Tensor, targets: Tensor, histories: Histories) -> Tensor:  # distinct (D,) ascending, targets (B,)
    """(B, D) bool: a sample's own target or history."""
    size = len(distinct)
    own = torch.cat([histories.items, targets.unsqueeze(1)], dim=1)  # (B, T + 1)
    real = torch.arange(own.shape[1], device=own.device) < histories.lengths.unsqueeze(1)
    real[:, -1] = True
    barred = torch.zeros(len(targets), size + 1, dtype=torch.bool, device=own.device)
    if size:
        column = torch.searchsorted(distinct, own)  # size if above all of them
        hit = real & (distinct[column.clamp(max=size - 1)] == own)
        barred.scatter_(1, column.masked_fill(~hit, size), True)
    return barred[:, :size]


def _lowest(distinct: Tensor, priority: Tensor, count: int) -> Tensor:  # distinct (D,), priority (B, D)
    drawn = priority.topk(min(count, len(distinct)), largest=False)
    items = distinct[drawn.indices].masked_fill(drawn.values.isinf(), -1)
    return torch.nn.functional.pad(items, (0, count - items.shape[1]), value=-1)


class Candidates(NamedTuple):
    """Distinct items to score by row, and the slots of scores."""

    items: Tensor  # (B, N) int64, distinct within a row and ascending, then -1 as padding
    target: Tensor  # (B,) int64, slot of the target
    rollouts: Tensor  # (B, G) int64, slot of each rollout's item, -1 where invalid
    negatives: Tensor  # (B, M) int64, slot of each negative, -1 where absent


class GroupRewards(NamedTuple):
    """Rewards of each group."""

    target: Tensor  # (B,) float32
    rollouts: Tensor  # (B, G) float32, NaN where invalid
    negatives: Tensor  # (B, M) float32, NaN where absent
    scored: int  # distinct (history, item) pairs that the reward scored


class ScoredGroups(NamedTuple):
    """Drawn groups with their rewards."""

    histories: Histories  # (B, T)
    targets: Tensor  # (B,) int64 logged items; all -1 at the ends of histories
    sampled: Rollouts  # (B, G, L) as they were drawn
    rollouts: Rollouts  # (B, G, L) the same, or with the logged item in every group
    target_codes: Tensor | None  # (B, L) int64; None at the ends of histories
    target_log_probs: Tensor | None  # (B, L) under the sampling distribution, if needed
    negatives: Tensor  # (B, M) int64, -1 where absent
    rewards: GroupRewards
    shuffled_rewards: GroupRewards  # the same scores, permuted among the distinct items of each group
    constant: float  # share of the groups with several items whose items all have the same score


def score_groups(
    reward: Reward,
    drawn: DrawnGroups,
    num_negatives: int,
    generator: torch.Generator,
    *,
    source: NegativeSource = "rollouts",
    division: Division = undivided,
) -> ScoredGroups:
    """Score all items of the groups in one call of the reward.

    BadReward or NotFinite: see `adagrpo.rewards.ask_reward`.

    Negatives are drawn first, then the permutation. At the ends of histories only rollouts are scored.
    """
    targets, histories = drawn.targets, drawn.histories

    def uniforms(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(targets.device)

    negatives = targets.new_empty(len(targets), 0)
    if drawn.target_codes is not None:
        if source == "rollouts":
            pool = distinct_rollouts(drawn.sampled.items)
            negatives = other_rollouts(targets, histories, pool, uniforms(*pool.counts.shape), num_negatives)
        else:
            negatives = in_batch_negatives(targets, histories, uniforms(len(targets), len(targets)), num_negatives)
    candidates = distinct_candidates(targets, drawn.rollouts.items, negatives)

    def compute(rows: Tensor | None) -> list[Tensor]:
        if rows is None:
            return [ask_reward(reward, histories, candidates.items)]
        return [ask_reward(reward, histories.rows(rows), candidates.items[rows])]

    wholes = [torch.zeros(candidates.items.shape, device=targets.device)]
    (scores,) = division(wholes, compute)
    return ScoredGroups(
        *drawn,
        negatives=negatives,
        rewards=read_rewards(candidates, scores),
        shuffled_rewards=read_rewards(candidates, shuffled(candidates, scores, uniforms(*scores.shape))),
        constant=constant_share(candidates, scores),
    )


# targets (B,), -1 at the ends of histories; rollout_items (B, G), -1 where invalid; negatives (B, M)
def distinct_candidates(targets: Tensor, rollout_items: Tensor, negatives: Tensor) -> Candidates:
    """List each distinct item of a row once."""
    mentioned, order = torch.cat([targets.unsqueeze(1), rollout_items, negatives], dim=1).sort(dim=1)
    fresh = mentioned >= 0  # (B, 1 + G + M): the first mention of an item
    fresh[:, 1:] &= mentioned[:, 1:] != mentioned[:, :-1]
    slot = fresh.cumsum(1) - 1  # -1 before the first item, which is where the -1 items are
    width = int(fresh.sum(1).max()) if len(targets) else 0
    # repeated mentions and -1 go to an extra column, which is dropped
    items = torch.full((len(targets), width + 1), -1, dtype=mentioned.dtype, device=mentioned.device)
    items = items.scatter(1, slot.masked_fill(~fresh, width), mentioned)[:, :width]
    slots = torch.empty_like(order).scatter(1, order, slot)
    group = rollout_items.shape[1]
    return Candidates(items, slots[:, 0], slots[:, 1 : 1 + group], slots[:, 1 + group :])


def constant_share(candidates: Candidates, scores: Tensor) -> float:
    """Return the share of rows with two or more candidates whose scores are equal; 0 without any."""
    real = candidates.items >= 0
    several = real.sum(1) > 1
    if not bool(several.any()):
        return 0.0
    same = scores.masked_fill(~real, -torch.inf).amax(1) == scores.masked_fill(~real, torch.inf).amin(1)
    return int((same & several).sum()) / max(1, int(several.sum()))


def read_rewards(candidates: Candidates, scores: Tensor) -> GroupRewards:  # scores (B, N)
    """Read each group's rewards from the (B, N) scores of its candidates."""

    def read(slots: Tensor) -> Tensor:
        if not scores.shape[1]:  # no rollout of any group names an item, and nothing else was scored
            return scores.new_full(slots.shape, torch.nan)
        return scores.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, torch.nan)

    return GroupRewards(
        target=read(candidates.target.unsqueeze(1)).squeeze(1),
        rollouts=read(candidates.rollouts),
        negatives=read(candidates.negatives),
        scored=int((candidates.items >= 0).sum()),
    )


# scores and uniforms (B, N) -> (B, N)
def shuffled(candidates: Candidates, scores: Tensor, uniforms: Tensor) -> Tensor:
    """Permute scores among each row's candidates; padding stays."""
    # padding is at the end of a row, and a stable sort leaves it there
    order = uniforms.masked_fill(candidates.items < 0, torch.inf).argsort(dim=1, stable=True)
    return scores.gather(1, order)
