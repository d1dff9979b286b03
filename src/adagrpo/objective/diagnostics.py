r"""Per-sample diagnostics: how uncertain the policy is, and how well the reward ranks the logged item.

For sample `b` with history `x_b`, logged item `y_b` and rollouts `o_bg`,

    above(i)     = (1/G) Σ_g 1[s(o_bg) > s(i)] + ½ 1[s(o_bg) = s(i)],  s = log π or RM;  rollouts that are i count as 0
    rollout_miss = 1 - (1/G) Σ_g 1[item(o_bg) = y_b]
    entropy      = -(1/(G L)) Σ_g Σ_l log π(o_bgl | x_b, o_bg,<l)
    q_b          = share of the distinct negatives n with RM(x_b, y_b) > RM(x_b, n), ties count one half
    agreement_b  = share of the pairs of distinct rollouts that the reward orders as their true utility does, likewise

The negatives of `q` are valid rollouts and in-batch items other than y_b, each counted once; `above` counts an item as
often as it was drawn. Source of `above`: AdaGRPO (Xu et al. 2026, arXiv 2606.08480), from a summary of its full text;
the treatment of ties and copies is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_shapes


class Discriminability(NamedTuple):
    """How well the reward separates the logged item from negatives; 0 where there are none."""

    q: Tensor  # (B,) float, over the union of rollouts and in-batch items
    negatives: Tensor  # (B,) int64, distinct negatives in the union; `q` is undefined if 0


def first_occurrence(items: Tensor) -> Tensor:  # (B, N), below 0 for no item, which is never marked
    """Return a (B, N) mask of the first occurrence of each item in its row.

    >>> first_occurrence(torch.tensor([[5, -1, 5, 2]]))
    tensor([[ True, False, False,  True]])
    """
    check_shapes(items=(items, "BN"))
    # A stable sort keeps equal items in their original order.
    ordered, order = items.sort(dim=1, stable=True)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(starts).scatter(1, order, starts & (ordered >= 0))


def rollout_miss(items: Tensor, targets: Tensor) -> Tensor:  # items (B, G), targets (B,)
    """Return the share of rollouts that are not the logged item, (B,) in [0, 1].

    >>> rollout_miss(torch.tensor([[3, -1, 3, 8]]), torch.tensor([3]))
    tensor([0.5000])
    """
    check_shapes(items=(items, "BG"), targets=(targets, "B"))
    missed = (items != targets[:, None]) | (items < 0)
    # One division of whole numbers: rounded once, so that 9 misses of 10 equal a threshold of 0.9.
    return missed.sum(dim=1).to(torch.float32) / items.shape[1]


def share_above(
    scores: Tensor,  # (B, N), NaN if absent
    items: Tensor,  # (B, N), -1 if absent
    rollout_scores: Tensor,  # (B, G)
    rollout_items: Tensor,  # (B, G)
) -> Tensor:  # (B, N) in [0, 1], NaN if absent
    """Return the share of rollouts that score above each item; a tie counts one half.

    Rollouts of the item itself, or without a score, are not above it.

    >>> scores, items = torch.tensor([[2.0, 1.0, torch.nan]]), torch.tensor([[9, 5, -1]])
    >>> share_above(scores, items, torch.tensor([[1.0, 1.0, 3.0, 2.0]]), torch.tensor([[5, 6, 7, 8]]))
    tensor([[0.3750, 0.6250,    nan]])
    """
    check_shapes(
        scores=(scores, "BN"),
        items=(items, "BN"),
        rollout_scores=(rollout_scores, "BG"),
        rollout_items=(rollout_items, "BG"),
    )
    own, other = scores.unsqueeze(2), rollout_scores.unsqueeze(1)
    points = 2 * (other > own).to(torch.int64) + (other == own)  # in halves, so that they stay whole numbers
    points = points.masked_fill(rollout_items.unsqueeze(1) == items.unsqueeze(2), 0)
    share = _share(points.sum(2), torch.full_like(items, 2 * rollout_items.shape[1]), scores.dtype)
    return share.masked_fill((items < 0) | scores.isnan(), torch.nan)


def rollout_entropy(log_probs: Tensor) -> Tensor:  # (B, G, L)
    """Estimate the entropy of the sampling distribution by Monte Carlo, (B,) nats per code.

    Unbiased for independent samples only.

    >>> rollout_entropy(torch.tensor([[[-1.0, -2.0], [-3.0, -4.0]]]))
    tensor([2.5000])
    """
    check_shapes(log_probs=(log_probs, "BGL"))
    return -log_probs.mean(dim=(1, 2))


def discriminability(
    target_reward: Tensor,  # (B,)
    rollout_rewards: Tensor,  # (B, G), not read where there is no item or the target
    rollout_items: Tensor,  # (B, G), -1 for no item
    negative_rewards: Tensor,  # (B, M), likewise; `M` may be 0
    negative_items: Tensor,  # (B, M), -1 for no item, and without items of the history
    targets: Tensor,  # (B,)
) -> Discriminability:
    """Return the share of distinct negatives that the reward ranks below the logged item; a tie counts one half.

    A repeated item counts once, at its first occurrence; NaN rewards win no comparison.

    >>> rollouts = torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[5, 5, 6]])
    >>> others = torch.tensor([[1.0, 3.0]]), torch.tensor([[5, 7]])
    >>> result = discriminability(torch.tensor([2.0]), *rollouts, *others, torch.tensor([9]))
    >>> result.q, result.negatives  # of 5, 6, 7: one win, one tie, one loss
    (tensor([0.5000]), tensor([3]))
    """
    check_shapes(
        target_reward=(target_reward, "B"),
        rollout_rewards=(rollout_rewards, "BG"),
        rollout_items=(rollout_items, "BG"),
        negative_rewards=(negative_rewards, "BM"),
        negative_items=(negative_items, "BM"),
        targets=(targets, "B"),
    )
    rewards = torch.cat((rollout_rewards, negative_rewards), dim=1)  # (B, G + M)
    items = torch.cat((rollout_items, negative_items), dim=1)  # (B, G + M)
    items = items.masked_fill(items == targets[:, None], -1)
    # Points are counted in halves, so that they stay whole numbers and `q` is rounded once.
    points = 2 * (target_reward[:, None] > rewards).to(torch.int64) + (target_reward[:, None] == rewards)
    union = first_occurrence(items)
    won, compared = points.masked_fill(~union, 0).sum(dim=1), union.sum(dim=1)
    return Discriminability(_share(won, 2 * compared, target_reward.dtype), compared)


class Agreement(NamedTuple):
    """Agreement of the reward's order of rollouts with true utility."""

    share: Tensor  # (B,) float, 0 where there is no pair
    pairs: Tensor  # (B,) int64, pairs of distinct items with different utilities; `share` is undefined if 0


# rewards (B, G), anything without an item, as the utilities; utilities (B, G); items (B, G), -1 for no item
def pairwise_agreement(rewards: Tensor, utilities: Tensor, items: Tensor) -> Agreement:
    """Return the share of pairs of distinct valid rollouts that the reward orders as the utility does.

    A reward tie counts one half; pairs of equal utility are not counted.

    >>> items = torch.tensor([[4, 4, 7, 9]])
    >>> pairwise_agreement(torch.tensor([[1.0, 1.0, 2.0, 2.0]]), torch.tensor([[0.1, 0.1, 0.5, 0.3]]), items)
    Agreement(share=tensor([0.8333]), pairs=tensor([3]))
    """
    check_shapes(rewards=(rewards, "BG"), utilities=(utilities, "BG"), items=(items, "BG"))
    distinct = first_occurrence(items)
    better = utilities.unsqueeze(2) > utilities.unsqueeze(1)  # (B, G, G)
    counted = better & distinct.unsqueeze(2) & distinct.unsqueeze(1)
    one, other = rewards.unsqueeze(2), rewards.unsqueeze(1)
    points = 2 * (one > other).to(torch.int64) + (one == other)  # in halves, as in `discriminability`
    pairs = counted.sum(dim=(1, 2))
    return Agreement(_share(points.masked_fill(~counted, 0).sum(dim=(1, 2)), 2 * pairs, rewards.dtype), pairs)


def _share(part: Tensor, whole: Tensor, dtype: torch.dtype) -> Tensor:  # part (B,) int64, whole (B,) int64
    return part.to(dtype) / whole.clamp(min=1).to(dtype)


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Means over a step's groups; None where undefined. Names are keys of `steps.jsonl`."""

    invalid_share: float | None = None  # share of the drawn rollouts that name no item
    entropy: float | None = None  # of the rollouts, nats
    admission: float | None = None  # share of the samples that the gate admitted
    rejected_easy: float | None = None
    rejected_undiscriminated: float | None = None
    rejected_degenerate: float | None = None
    rejected_closed: float | None = None
    scored_pairs: float | None = None  # a count: pairs that the reward scored
    empty_groups: float | None = None  # a count: groups without an item; None if 0
    reward: float | None = None  # of the valid rollouts
    contains_target: float | None = None  # share of the groups that hold the logged item
    admitted_contains_target: float | None = None  # the same among admitted groups
    kl: float | None = None  # from the starting policy, nats
    constant_rewards: float | None = None  # share of the groups with several items whose rewards are all equal
    shuffled_admission: float | None = None  # share of the samples that the gate would admit by shuffled rewards

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the summary in a row of `steps.jsonl`; missing keys are None.

        >>> GroupSummary.of_row({"step": 3, "admission": 0.25}).admission
        0.25
        """
        return cls(**{one.name: row[one.name] for one in fields(cls) if one.name in row})

    def to_json(self) -> dict[str, float]:
        """Return the measured values by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def progress(self) -> dict[str, float]:
        """Values to show on a progress line, by name."""
        return GroupSummary(reward=self.reward, admission=self.admission, invalid_share=self.invalid_share).to_json()
