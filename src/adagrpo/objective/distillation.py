r"""Distillation of the reward: losses of whole groups, elementwise over samples.

    distill    KL(q ‖ p) over the distinct rollouts of a group,   log π(o) = Σ_l log π(c_l | x, c_<l),
               p = softmax(log π(o)), q = softmax(log π_0(o) + w r(o)) over those that are valid, 0 for the others
    best_of_n  -(1/L) Σ_l log π(c_l(o*) | x, c_<l(o*)),   o* = the valid rollout of the highest reward
    margin     (1/G) Σ_{o no item} max(0, 1 + log π(o) - min_{o' an item} log π(o'))
    mass       log(M_0 / M) + (1 - M_0) / M_0 · log((1 - M_0) / (1 - M)),   M = Σ_o π(o) over the distinct rollouts

`q` is the distribution that re-ranking at serving time would use. `margin` pushes sequences that name no item a nat
below every item of their group, without a reward. `mass` holds the total probability `M` of a group, which `distill`
does not see, at its value `M_0` under the starting policy:

    distill + mass = KL(Q ‖ P) / M_0,    P over the rollouts and all else together, Q = M_0 q, and 1 - M_0 for all else

Sources: listwise distillation after ListNet (Cao et al. 2007) and Hinton et al. (2015); best of n as rejection
sampling fine-tuning (RAFT, Dong et al. 2023, arXiv 2304.06767).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_shapes

LEAST_REST = 1e-4  # least probability assumed to be outside a group


class GroupMass(NamedTuple):
    """Probability mass of a policy on the distinct rollouts of each group."""

    losses: Tensor  # (B,)
    mass: Tensor  # (B,) of the trained policy, no gradient
    start: Tensor  # (B,) of the starting policy


def listwise_distillation(
    log_probs: Tensor,  # (B, G, L)
    target_logits: Tensor,  # (B, G) of `q`, finite where the rollout is valid; no gradient
    items: Tensor,  # (B, G), -1 where invalid
    codes: Tensor,  # (B, G, L), equal ones count once
    ignored: Tensor,  # (B, G) bool, left out of both `p` and `q`
) -> Tensor:
    """Return `KL(q ‖ p)` over the distinct rollouts of each group, (B,) nats.

    0, also the gradient, for a group without a valid rollout or with fewer than two distinct ones.

    >>> log_probs = torch.tensor([[[0.2], [0.2], [0.1]]]).log()  # the third is invalid
    >>> target_logits = torch.tensor([[3.0, 1.0, torch.nan]]).log()
    >>> items, codes = torch.tensor([[4, 7, -1]]), torch.tensor([[[0], [1], [2]]])
    >>> listwise_distillation(log_probs, target_logits, items, codes, torch.tensor([[False, False, False]]))
    tensor([0.3540])
    """
    check_shapes(
        log_probs=(log_probs, "BGL"), target_logits=(target_logits, "BG"), items=(items, "BG"), codes=(codes, "BGL")
    )
    check_shapes(items=(items, "BG"), ignored=(ignored, "BG?"))
    counted = _distinct(codes) & ~ignored
    taught = counted & (items >= 0)
    nothing = ~taught.any(1, keepdim=True)
    student = log_probs.sum(-1).masked_fill(~counted, -torch.inf).masked_fill(nothing, 0.0).log_softmax(1)
    target = target_logits.detach().masked_fill(~taught, -torch.inf).masked_fill(nothing, 0.0).log_softmax(1)
    difference = (target.masked_fill(~taught, 0.0) - student.masked_fill(~taught, 0.0)) * target.exp()
    return difference.masked_fill(~taught, 0.0).sum(1)


def group_mass(
    log_probs: Tensor,  # (B, G, L)
    reference: Tensor,  # (B, G, L) under the starting policy; no gradient
    items: Tensor,  # (B, G), -1 where invalid
    codes: Tensor,  # (B, G, L), equal ones count once
    ignored: Tensor,  # (B, G) bool, not of the group
) -> GroupMass:
    """Return a penalty in nats that keeps a group's total probability at the starting policy's.

    0, also the gradient, for a group without a valid rollout.

    >>> now, start = torch.tensor([[[0.2], [0.05]]]).log(), torch.tensor([[[0.4], [0.1]]]).log()
    >>> items, codes = torch.tensor([[4, 7]]), torch.tensor([[[0], [1]]])
    >>> group_mass(now, start, items, codes, torch.tensor([[False, False]]))  # ln 2 + ln(.5 / .75)
    GroupMass(losses=tensor([0.2877]), mass=tensor([0.2500]), start=tensor([0.5000]))
    """
    check_shapes(log_probs=(log_probs, "BGL"), reference=(reference, "BGL"), items=(items, "BG"), codes=(codes, "BGL"))
    check_shapes(items=(items, "BG"), ignored=(ignored, "BG?"))
    counted = _distinct(codes) & ~ignored
    nothing = ~(counted & (items >= 0)).any(1)  # (B,)

    def log_mass(values: Tensor) -> Tensor:  # (B, G, L) to (B,)
        # an empty group gets a finite stand-in, since the gradient of its logsumexp would be NaN
        kept = values.sum(-1).masked_fill(~counted, -torch.inf).masked_fill(nothing.unsqueeze(1), -1.0)
        return torch.where(nothing, -1.0, kept.logsumexp(1)).clamp(max=math.log1p(-LEAST_REST))

    now, start = log_mass(log_probs), log_mass(reference.detach())
    rest = torch.log(-torch.expm1(start)) - torch.log(-torch.expm1(now))
    losses = (start - now) + torch.expm1(-start) * rest  # (1 - M_0) / M_0
    return GroupMass(losses.masked_fill(nothing, 0.0), now.detach().exp(), start.exp())


def _distinct(codes: Tensor) -> Tensor:  # (B, G, L) -> (B, G) bool
    same = (codes.unsqueeze(1) == codes.unsqueeze(2)).all(-1)  # (B, G, G)
    return ~same.tril(-1).any(2)


# log_probs (B, G, L), rewards and valid (B, G)
def best_of_n_loss(log_probs: Tensor, rewards: Tensor, valid: Tensor) -> Tensor:
    """Return the NLL of the valid rollout with the highest reward, (B,) nats per code; the first of equals.

    0, also the gradient, for a group without a valid rollout.

    >>> log_probs = torch.tensor([[[-1.0, -3.0], [-2.0, -4.0]]])
    >>> best_of_n_loss(log_probs, torch.tensor([[0.1, 0.7]]), torch.tensor([[True, True]]))
    tensor([3.])
    """
    check_shapes(log_probs=(log_probs, "BGL"), rewards=(rewards, "BG"), valid=(valid, "BG?"))
    best = rewards.masked_fill(~valid, -torch.inf).max(1, keepdim=True).values
    chosen = ((rewards == best) & valid).to(torch.uint8).argmax(1)
    losses = -log_probs.mean(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
    return losses.masked_fill(~valid.any(1), 0.0)


def validity_margin(log_probs: Tensor, real: Tensor) -> Tensor:  # log_probs (B, G, L), real (B, G)
    """Return how far rollouts that name no item rise above one nat below the least probable item, (B,) nats.

    The gradient reaches those rollouts alone; 0 for a group without an item.

    >>> log_probs = torch.tensor([[[-1.0], [-3.0], [-3.5], [-9.0]]])
    >>> validity_margin(log_probs, torch.tensor([[True, True, False, False]]))
    tensor([0.1250])
    """
    check_shapes(log_probs=(log_probs, "BGL"), real=(real, "BG?"))
    whole = log_probs.sum(-1)
    least = whole.detach().masked_fill(~real, torch.inf).amin(1, keepdim=True)
    return (1 + whole - least).clamp(min=0).masked_fill(real, 0.0).mean(1)
