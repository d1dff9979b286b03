"""Negatives of a group: items of other samples of the batch, scored for this sample's history.

    rollouts    items that were generated for other samples, drawn as often as they occur there     the gate `adagrpo`
    targets     logged items of other samples, each as likely                                        `rollout_miss`

No negative is the sample's own logged item or in its history.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.types import Histories


def in_batch_negatives(
    targets: Tensor,  # (B,)
    histories: Histories,
    uniforms: Tensor,  # (B, B) in [0, 1), column `j` for the `j`-th distinct target; the `M` lowest eligible ones win
    count: int,
) -> Tensor:  # (B, M) int64, -1 where too few are eligible
    """Draw `M` negatives per sample uniformly, without replacement, from the distinct targets of the batch.

    >>> histories = Histories(torch.tensor([[3], [1], [3]]), torch.tensor([1, 1, 1]))
    >>> in_batch_negatives(torch.tensor([1, 2, 2]), histories, torch.full((3, 3), 0.5), 2)
    tensor([[ 2, -1],
            [-1, -1],
            [ 1, -1]])
    """
    samples = len(targets)
    if uniforms.shape != (samples, samples):
        raise ValueError(f"uniforms must be ({samples}, {samples}), got {tuple(uniforms.shape)}")
    _check_drawn(targets, histories, count)
    distinct = torch.unique(targets)  # (D,) ascending
    priority = uniforms[:, : len(distinct)].masked_fill(_barred(distinct, targets, histories), torch.inf)
    return _lowest(distinct, priority, count)


class RolloutPool(NamedTuple):
    """The distinct items among the rollouts of a batch."""

    items: Tensor  # (D,) int64, ascending
    counts: Tensor  # (B, D) int64, how many rollouts of each sample name them


def distinct_rollouts(items: Tensor) -> RolloutPool:
    """Count the rollouts of each sample by item.

    >>> distinct_rollouts(torch.tensor([[7, 5, 7], [5, -1, -1]]))
    RolloutPool(items=tensor([5, 7]), counts=tensor([[1, 2],
            [1, 0]]))
    """
    distinct = torch.unique(items[items >= 0])
    counts = items.new_zeros(len(items), len(distinct) + 1)  # the last column is for invalid rollouts
    column = torch.searchsorted(distinct, items).masked_fill(items < 0, len(distinct))
    return RolloutPool(distinct, counts.scatter_add_(1, column, torch.ones_like(items))[:, :-1])


def other_rollouts(
    targets: Tensor,  # (B,)
    histories: Histories,
    pool: RolloutPool,
    uniforms: Tensor,  # (B, D) in [0, 1)
    count: int,
) -> Tensor:  # (B, M) int64, -1 where too few are eligible
    """Draw `M` distinct items per sample from the rollouts of the other samples, proportional to their frequency there.

    >>> histories = Histories(torch.tensor([[3], [4]]), torch.tensor([1, 1]))
    >>> pool = distinct_rollouts(torch.tensor([[7, 5], [3, 8]]))
    >>> other_rollouts(torch.tensor([1, 7]), histories, pool, torch.full((2, 4), 0.5), 2)
    tensor([[ 8, -1],
            [ 5, -1]])
    """
    if uniforms.shape != pool.counts.shape or len(targets) != len(uniforms):
        raise ValueError(f"uniforms must be {(len(targets), len(pool.items))}, got {tuple(uniforms.shape)}")
    _check_drawn(targets, histories, count)
    others = pool.counts.sum(0, keepdim=True) - pool.counts  # (B, D)
    # the lowest of exponential variables with these rates are a draw without replacement, proportional to the rates
    priority = -torch.log1p(-uniforms) / others.clamp(min=1)
    barred = _barred(pool.items, targets, histories) | (others == 0)
    return _lowest(pool.items, priority.masked_fill(barred, torch.inf), count)


def _check_drawn(targets: Tensor, histories: Histories, count: int) -> None:
    if histories.items.shape[0] != len(targets):
        raise ValueError(f"histories must hold {len(targets)} rows, got {histories.items.shape[0]}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")


def _barred(distinct: Tensor, targets: Tensor, histories: Histories) -> Tensor:  # distinct (D,) ascending, targets (B,)
    """(B, D) bool: items that are a sample's own target or in its history."""
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
    """(B, count) int64: the items of the lowest finite priorities, then -1."""
    drawn = priority.topk(min(count, len(distinct)), largest=False)
    items = distinct[drawn.indices].masked_fill(drawn.values.isinf(), -1)
    return torch.nn.functional.pad(items, (0, count - items.shape[1]), value=-1)
