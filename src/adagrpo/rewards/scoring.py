"""One call to the reward for all that a group needs: its target, its rollouts and its in-batch negatives.

    pairs(b) = {y_b} ∪ {item(o_bg) valid} ∪ {n_b1 .. n_bM}         each distinct (x_b, item) is scored once

Candidates are integer items in the row of their own history; scores are read back by slot. Implementations that key
rewards by the text of a history give equal histories with different targets the wrong label, and ones that fill in a
score for a Semantic ID that names no item reward hallucination. Here an invalid rollout has no slot and reads NaN.

Scoring is split in two, `candidate_scores` and `read_rewards`, so that the scores of one call can be read twice: as
they are, and `shuffled` among the candidates of each row. A shuffled reward keeps the row's values and forgets which
item each belongs to: the control for every claim that the reward's content mattered.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.errors import NotFinite
from adagrpo.rewards.base import Reward
from adagrpo.types import Histories

__all__ = [
    "BadReward",
    "Candidates",
    "GroupRewards",
    "ask_reward",
    "candidate_scores",
    "constant_share",
    "distinct_candidates",
    "in_batch_negatives",
    "read_rewards",
    "score_groups",
    "shuffled",
]


class BadReward(ValueError):
    """A reward returned the wrong shape."""


class Candidates(NamedTuple):
    """The distinct items to score in each row, and where to find each one's score."""

    items: Tensor  # (B, N) int64, distinct within a row and ascending, then -1 as padding
    target: Tensor  # (B,) int64, slot of the target
    rollouts: Tensor  # (B, G) int64, slot of each rollout's item, -1 where invalid
    negatives: Tensor  # (B, M) int64, slot of each negative, -1 where absent


class GroupRewards(NamedTuple):
    """What the reward says about each group."""

    target: Tensor  # (B,) float32
    rollouts: Tensor  # (B, G) float32, NaN where invalid
    negatives: Tensor  # (B, M) float32, NaN where absent
    scored: int  # distinct (history, item) pairs that the reward was asked for


def in_batch_negatives(
    targets: Tensor,  # (B,)
    histories: Histories,
    uniforms: Tensor,  # (B, B)
    count: int,
) -> Tensor:  # (B, M) int64
    """Draw `M` negatives a sample, without replacement, uniformly from the distinct targets of the same set.

    A sample's own target and the items of its history are never drawn.

    Args:
        targets: (B,) int64 logged items.
        histories: `B` histories.
        uniforms: (B, B) numbers in [0, 1); column `j` belongs to the `j`-th distinct target in ascending order, and the
            `M` lowest eligible ones of a row win.
        count: `M`.

    Returns:
        (B, M) int64 items, -1 where the set holds too few.

    Raises:
        ValueError: a shape is wrong or `count` is negative.

    >>> histories = Histories(torch.tensor([[3], [1], [3]]), torch.tensor([1, 1, 1]))
    >>> in_batch_negatives(torch.tensor([1, 2, 2]), histories, torch.full((3, 3), 0.5), 2)
    tensor([[ 2, -1],
            [-1, -1],
            [ 1, -1]])
    """
    samples = len(targets)
    if uniforms.shape != (samples, samples):
        raise ValueError(f"uniforms must be ({samples}, {samples}), got {tuple(uniforms.shape)}")
    if histories.items.shape[0] != samples:
        raise ValueError(f"histories must hold {samples} rows, got {histories.items.shape[0]}")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    distinct = torch.unique(targets)  # (D,) ascending
    size = len(distinct)
    # the column of each history item among the distinct targets; D where it is none of them, or padding
    column = torch.searchsorted(distinct, histories.items)  # (B, T)
    real = torch.arange(histories.items.shape[1], device=targets.device) < histories.lengths.unsqueeze(1)
    hit = real & (distinct[column.clamp(max=size - 1)] == histories.items)
    excluded = torch.zeros(samples, size + 1, dtype=torch.bool, device=targets.device)
    excluded.scatter_(1, column.masked_fill(~hit, size), True)
    excluded.scatter_(1, torch.searchsorted(distinct, targets).unsqueeze(1), True)
    priority = uniforms[:, :size].masked_fill(excluded[:, :size], torch.inf)
    drawn = priority.topk(min(count, size), largest=False)
    items = distinct[drawn.indices].masked_fill(drawn.values.isinf(), -1)
    return torch.nn.functional.pad(items, (0, count - items.shape[1]), value=-1)


def distinct_candidates(
    targets: Tensor,  # (B,)
    rollout_items: Tensor,  # (B, G)
    negatives: Tensor,  # (B, M)
) -> Candidates:
    """List each distinct item of a row once.

    Args:
        targets: (B,) int64 items.
        rollout_items: (B, G) int64 items, -1 where invalid.
        negatives: (B, M) int64 items, -1 where absent.

    Returns:
        Candidates, as wide as the row with the most distinct items.

    Raises:
        ValueError: the arguments disagree on `B`.

    >>> distinct_candidates(torch.tensor([7]), torch.tensor([[9, -1, 7]]), torch.tensor([[4]])).items
    tensor([[4, 7, 9]])
    """
    samples = len(targets)
    for name, value in (("rollout_items", rollout_items), ("negatives", negatives)):
        if value.ndim != 2 or value.shape[0] != samples:
            raise ValueError(f"{name} must have {samples} rows and two dimensions, got {tuple(value.shape)}")
    mentioned, order = torch.cat([targets.unsqueeze(1), rollout_items, negatives], dim=1).sort(dim=1)
    fresh = mentioned >= 0  # (B, 1 + G + M): the first mention of an item
    fresh[:, 1:] &= mentioned[:, 1:] != mentioned[:, :-1]
    slot = fresh.cumsum(1) - 1  # -1 before the first item, which is where the -1 items are
    width = int(fresh.sum(1).max()) if samples else 0
    # repeated mentions and -1 go to one column more, which is dropped
    items = torch.full((samples, width + 1), -1, dtype=mentioned.dtype, device=mentioned.device)
    items = items.scatter(1, slot.masked_fill(~fresh, width), mentioned)[:, :width]
    slots = torch.empty_like(order).scatter(1, order, slot)
    group = rollout_items.shape[1]
    return Candidates(items, slots[:, 0], slots[:, 1 : 1 + group], slots[:, 1 + group :])


@torch.no_grad()
def ask_reward(
    reward: Reward,
    histories: Histories,
    items: Tensor,  # (B, N)
) -> Tensor:  # (B, N)
    """Ask the reward once for all items, and check the answer.

    Args:
        reward: the reward model.
        histories: `B` histories.
        items: (B, N) int64, -1 where there is nothing to score.

    Returns:
        (B, N) float32, NaN at -1.

    Raises:
        BadReward: the shape is not (B, N).
        NotFinite: the score of a real item is NaN or infinite; the reward, or the members of it that did so, are named.
    """
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


def candidate_scores(reward: Reward, histories: Histories, candidates: Candidates) -> Tensor:  # (B, N)
    """The scores of all candidates, NaN at padding.

    Raises:
        BadReward, NotFinite: see `ask_reward`.
    """
    return ask_reward(reward, histories, candidates.items)


def _culprits(reward: Reward, histories: Histories, items: Tensor) -> list[str]:
    """Names of the members whose own scores are not finite; of the reward itself where it has none, or none of them."""
    found = [
        name
        for member in getattr(reward, "members", ())
        if not bool((member.score(histories, items).isfinite() | (items < 0)).all())
        for name in _culprits(member, histories, items)
    ]
    return found or [str(getattr(reward, "name", type(reward).__name__))]


def constant_share(candidates: Candidates, scores: Tensor) -> float:
    """The share of rows, among those with two or more candidates, whose candidates all have the same score.

    Args:
        candidates: what was scored.
        scores: (B, N) from `candidate_scores`.

    Returns:
        0 to 1; 0 where no row has two candidates.

    >>> candidates = distinct_candidates(torch.tensor([7, 7]), torch.tensor([[9], [9]]), torch.tensor([[-1], [-1]]))
    >>> constant_share(candidates, torch.tensor([[1.0, 1.0], [1.0, 2.0]]))
    0.5
    """
    _check_scores(candidates, scores)
    real = candidates.items >= 0
    several = real.sum(1) > 1
    same = scores.masked_fill(~real, -torch.inf).amax(1) == scores.masked_fill(~real, torch.inf).amin(1)
    return int((same & several).sum()) / max(1, int(several.sum()))


def read_rewards(
    candidates: Candidates,
    scores: Tensor,  # (B, N)
) -> GroupRewards:
    """Read each group's rewards from the scores of its candidates.

    Args:
        candidates: where each item's score is.
        scores: (B, N) from `candidate_scores`, as they are or `shuffled`.

    Raises:
        ValueError: `scores` does not have the shape of the candidates.
    """
    _check_scores(candidates, scores)

    def read(slots: Tensor) -> Tensor:
        return scores.gather(1, slots.clamp(min=0)).masked_fill(slots < 0, torch.nan)

    return GroupRewards(
        target=read(candidates.target.unsqueeze(1)).squeeze(1),
        rollouts=read(candidates.rollouts),
        negatives=read(candidates.negatives),
        scored=int((candidates.items >= 0).sum()),
    )


def score_groups(reward: Reward, histories: Histories, candidates: Candidates) -> GroupRewards:
    """Score each distinct (history, item) once and read every group's rewards.

    Raises:
        BadReward, NotFinite: see `ask_reward`.
    """
    return read_rewards(candidates, candidate_scores(reward, histories, candidates))


def shuffled(
    candidates: Candidates,
    scores: Tensor,  # (B, N)
    uniforms: Tensor,  # (B, N)
) -> Tensor:  # (B, N)
    """Permute the scores among the distinct candidates of each row; padding stays where it is.

    Args:
        candidates: what was scored.
        scores: (B, N) from `candidate_scores`.
        uniforms: (B, N) numbers in [0, 1); their order is the permutation.

    Raises:
        ValueError: a shape is not that of the candidates.
    """
    _check_scores(candidates, scores)
    if uniforms.shape != scores.shape:
        raise ValueError(f"uniforms must be {tuple(scores.shape)}, got {tuple(uniforms.shape)}")
    # padding is at the end of a row, and a stable sort leaves it there
    order = uniforms.masked_fill(candidates.items < 0, torch.inf).argsort(dim=1, stable=True)
    return scores.gather(1, order)


def _check_scores(candidates: Candidates, scores: Tensor) -> None:
    if scores.shape != candidates.items.shape:
        raise ValueError(f"scores must be {tuple(candidates.items.shape)}, got {tuple(scores.shape)}")
