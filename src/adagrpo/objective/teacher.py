r"""What a team would try before GRPO: the reward as a teacher. Losses of whole groups, elementwise over samples.

    distill    KL(q ‖ p) over the distinct valid rollouts of a group,   q = softmax(log π_0(o) + w r(o)),
               p = softmax(log π(o)), log π(o) = Σ_l log π(c_l | x, c_<l)
    best_of_n  -(1/L) Σ_l log π(c_l(o*) | x, c_<l(o*)),   o* = the valid rollout of the highest reward

`q` is the distribution that re-ranking at serving time would use, so distillation teaches the policy to be its own
re-ranker. Sources: listwise distillation in the manner of ListNet (Cao et al. 2007) and Hinton et al. (2015); best of n
as rejection sampling fine-tuning (RAFT, Dong et al. 2023, arXiv 2304.06767).
"""

from __future__ import annotations

import torch
from torch import Tensor

from adagrpo.objective.advantages import check_masks, check_shapes
from adagrpo.objective.diagnostics import first_occurrence

__all__ = ["best_of_n_loss", "listwise_distillation"]


def listwise_distillation(
    log_probs: Tensor,  # (B, G, L)
    teacher: Tensor,  # (B, G)
    items: Tensor,  # (B, G)
) -> Tensor:
    """`KL(q ‖ p)` over the distinct items of each group.

    Args:
        log_probs: (B, G, L) log-probability of each code under the policy that is trained.
        teacher: (B, G) logits of `q`, finite where the rollout is valid; a constant, no gradient.
        items: (B, G) int64 item of each rollout, -1 where it names none.

    Returns:
        (B,) nats; 0, with gradient 0, for a group with fewer than two distinct items.

    Raises:
        ValueError: if a shape does not fit.

    Example:
        >>> log_probs = torch.tensor([[[0.2], [0.2], [0.9]]]).log()  # p is even, one rollout is invalid
        >>> listwise_distillation(log_probs, torch.tensor([[3.0, 1.0, torch.nan]]).log(), torch.tensor([[4, 7, -1]]))
        tensor([0.1308])
    """
    check_shapes(log_probs=(log_probs, "BGL"), teacher=(teacher, "BG"), items=(items, "BG"))
    kept = first_occurrence(items)
    student = log_probs.sum(-1).masked_fill(~kept, -torch.inf)
    target = teacher.detach().masked_fill(~kept, -torch.inf)
    empty = ~kept.any(1, keepdim=True)
    student, target = student.masked_fill(empty, 0.0).log_softmax(1), target.masked_fill(empty, 0.0).log_softmax(1)
    difference = (target.masked_fill(~kept, 0.0) - student.masked_fill(~kept, 0.0)) * target.exp()
    return difference.masked_fill(~kept, 0.0).sum(1)


def best_of_n_loss(
    log_probs: Tensor,  # (B, G, L)
    rewards: Tensor,  # (B, G)
    valid: Tensor,  # (B, G)
) -> Tensor:
    """NLL of the valid rollout of the highest reward, the first of equals.

    Args:
        log_probs: (B, G, L) log-probability of each code under the policy that is trained.
        rewards: (B, G), anything where a rollout is invalid.
        valid: (B, G) bool.

    Returns:
        (B,) nats a code; 0, with gradient 0, for a group without a valid rollout.

    Raises:
        ValueError: if a shape does not fit or `valid` is not bool.

    Example:
        >>> log_probs = torch.tensor([[[-1.0, -3.0], [-2.0, -4.0]]])
        >>> best_of_n_loss(log_probs, torch.tensor([[0.1, 0.7]]), torch.tensor([[True, True]]))
        tensor([3.])
    """
    check_shapes(log_probs=(log_probs, "BGL"), rewards=(rewards, "BG"), valid=(valid, "BG"))
    check_masks(valid=valid)
    best = rewards.masked_fill(~valid, -torch.inf).max(1, keepdim=True).values
    chosen = ((rewards == best) & valid).to(torch.uint8).argmax(1)
    losses = -log_probs.mean(-1).gather(1, chosen.unsqueeze(1)).squeeze(1)
    return losses.masked_fill(~valid.any(1), 0.0)
