r"""Reward terms of other papers as functions of `TermInputs`, and `register_all`, which adds them to the tables.

With ℓ_g = Σ_l log π(c_l(o_g) | x, c_<l), ℓ⁰ the same under the starting policy, r_g the reward, A_g the standardised
reward (`group_advantages`), n the valid rollouts of a group of G, y the logged item:

    grp         GRPO + w max(0, ℓ⁰(y) - slack - ℓ(y))                             Snap's GRP, arXiv 2609.36688
    gryphon     (1/n) Σ_g ((ℓ_g - mean ℓ) - w (r_g - mean r))²                    Gryphon-v2, arXiv 2608.06213
    rloo        -(1/G) Σ_g (r_g - mean of the others' r) ℓ_g                      Ahmadian et al., arXiv 2402.14740
    gspo        -(1/G) Σ_g min(s A, clip(s) A),   s = exp((ℓ_g - ℓ_g of the draw) / L)   Zheng et al., arXiv 2507.18071
    s_dpo       -log σ(-log Σ_rejected exp(β (Δ_g - Δ_chosen))),   Δ = ℓ - ℓ⁰     Chen et al., arXiv 2406.09215
    awr         -(1/n) Σ_g min(exp(A_g / β), w_max) ℓ_g / L                       Peng et al., arXiv 1910.00177
    goalrank    -Σ_g q_g ℓ_g,   q = softmax(A_g) over the distinct items          GoalRank, arXiv 2509.22046

All stand beside NLL on the logged item, as the arms of this project do. GRP, Gryphon-v2 and GoalRank are as summarised;
the papers' texts were not read. S-DPO follows its authors' code, GSPO and RLOO the documentation of libraries that have
them, AWR its usual formula; without the baseline and the ceiling it is RWR (Peters and Schaal 2007). Dr. GRPO is `grpo`
with `scale_rewards: false`, since its length normalisation is a constant where all Semantic IDs have L codes. A
function returns the loss of each group, (A,), 0 where there is nothing to learn; invalid rollouts are ignored, except
where an option penalises them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adagrpo.objective import clipped_surrogate, first_occurrence, group_advantages, group_loss
from adagrpo.objective.terms import Objective, RewardTerm, TermInputs, TermLoss, register
from adagrpo.types import NonNegativeFloat, PositiveFloat

__all__ = ["EXTENSIONS", "awr", "goalrank", "grp", "gryphon", "gspo", "register_all", "rloo", "s_dpo"]


def grp(
    groups: TermInputs,
    *,
    margin_weight: NonNegativeFloat = 1.0,
    slack: NonNegativeFloat = 1e-3,
    invalid_penalty: NonNegativeFloat = 1.0,
) -> TermLoss:
    """GRPO, with a one-sided margin that keeps the logged item's log-probability at its reference.

    As summarised; the paper's text was not read. It needs `inject_target`. An injected logged item is no rollout: it
    gets the margin and no advantage. Where the group does not hold the logged item, there is no margin.

    Args:
        groups: with `reference` and `targets`.
        margin_weight: of the margin, in nats of a whole Semantic ID, beside GRPO's loss.
        slack: nats that the logged item may lose for nothing; above the rounding of two passes.
        invalid_penalty: as in `grpo`.
    """
    apart = injected(groups)
    drawn = (groups.items >= 0) & ~apart
    advantages = group_advantages(groups.rewards, drawn, invalid_penalty=invalid_penalty).masked_fill(apart, 0.0)
    surrogate = group_loss(clipped_surrogate(groups.log_probs, groups.old_log_probs, advantages).loss)
    now, start, held = _of_target(groups)
    margin = (start - slack - now).relu().masked_fill(~held, 0.0)
    return TermLoss(surrogate + margin_weight * margin, {"margin": margin.detach().mean()})


def gryphon(groups: TermInputs, *, reward_weight: PositiveFloat = 1.0) -> TermLoss:
    """Squared error of the rollouts' log-probabilities against the ranker's scores, both less their group's mean.

    As summarised; the paper's text was not read. The summary says neither the scale nor the offset of the regression:
    the means take the offset out, and the scale is an option. Impressions are not among the inputs of a term.

    Args:
        groups: any.
        reward_weight: nats per spread of the reward, the unit of `distill.reward_weight`.
    """
    valid = groups.items >= 0
    errors = _centred(groups.log_probs.sum(-1), valid) - reward_weight * _centred(groups.rewards, valid)
    return TermLoss(_mean(errors.square(), valid))


def rloo(groups: TermInputs, *, invalid_penalty: NonNegativeFloat = 1.0) -> TermLoss:
    """REINFORCE of whole Semantic IDs, each rollout's baseline the mean reward of the others.

    Args:
        groups: any; a group of one valid rollout has no baseline, and advantage 0.
        invalid_penalty: an invalid rollout has advantage minus this, in reward units, and is in no baseline.
    """
    valid = groups.items >= 0
    count = valid.sum(1, keepdim=True)
    # r - (Σ r - r) / (n - 1) = (r - mean) n / (n - 1)
    advantages = _centred(groups.rewards, valid) * count / (count - 1).clamp(min=1)
    advantages = advantages.masked_fill(~valid, -invalid_penalty)
    return TermLoss(-(advantages * groups.log_probs.sum(-1)).mean(1))


def gspo(
    groups: TermInputs,
    *,
    epsilon: PositiveFloat = 3e-4,
    epsilon_high: PositiveFloat = 4e-4,
    invalid_penalty: NonNegativeFloat = 1.0,
) -> TermLoss:
    """GRPO whose ratio and clip are of the whole Semantic ID, with the share of rollouts clipped as `clip_fraction`.

    With one iteration over a group every ratio is 1 and the gradient is that of `grpo`; so `num_iterations` above 1.

    Args:
        groups: any.
        epsilon: the clip, downwards; the paper's, for its long answers.
        epsilon_high: the clip, upwards.
        invalid_penalty: as in `grpo`.
    """
    advantages = group_advantages(groups.rewards, groups.items >= 0, invalid_penalty=invalid_penalty)
    surrogate = clipped_surrogate(
        groups.log_probs.mean(-1, keepdim=True),
        groups.old_log_probs.mean(-1, keepdim=True),
        advantages,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
    )
    return TermLoss(group_loss(surrogate.loss), {"clip_fraction": surrogate.clipped.float().mean()})


def s_dpo(groups: TermInputs, *, beta: PositiveFloat = 1.0, chosen: Literal["best", "logged"] = "best") -> TermLoss:
    """Softmax-DPO: one item of the group is chosen, the other items are rejected.

    Args:
        groups: with `reference`, and for `logged` with `targets`. Equal items count once.
        beta: of the log-ratios.
        chosen: the item of the highest reward, the first of equals; or the logged item, which needs `inject_target`.
    """
    counted = first_occurrence(groups.items)
    ratios = groups.log_probs.sum(-1) - _needed(groups.reference, "reference").sum(-1)
    if chosen == "best":
        best = groups.rewards.masked_fill(~counted, -torch.inf).amax(1, keepdim=True)
        taken = counted & (groups.rewards == best)
        taken &= taken.cumsum(1) == 1
    else:
        taken = counted & _is_target(groups)
    rejected = counted & ~taken
    nothing = ~(taken.any(1) & rejected.any(1))
    mine = (ratios.masked_fill(~taken, 0.0)).sum(1, keepdim=True)
    # a group of nothing gets a finite stand-in before the sum, whose gradient would be NaN
    logits = (beta * (ratios - mine)).masked_fill(~rejected, -torch.inf).masked_fill(nothing[:, None], 0.0)
    losses = torch.nn.functional.softplus(logits.logsumexp(1))  # -log σ(-z)
    return TermLoss(losses.masked_fill(nothing, 0.0))


def awr(groups: TermInputs, *, beta: PositiveFloat = 1.0, max_weight: PositiveFloat = 20.0) -> TermLoss:
    """NLL of the valid rollouts, each weighted by the exponential of its standardised reward.

    Args:
        groups: any.
        beta: deviations of the group's reward per e-fold.
        max_weight: what no weight exceeds.
    """
    valid = groups.items >= 0
    weights = (group_advantages(groups.rewards, valid) / beta).exp().clamp(max=max_weight)
    return TermLoss(_mean(-weights.detach() * groups.log_probs.mean(-1), valid))


def goalrank(groups: TermInputs) -> TermLoss:
    """Cross-entropy to a policy that the rewards of a group define: softmax of the standardised rewards of its items.

    As summarised; the paper's text was not read. Its groups are of whole lists, ours of items.

    Args:
        groups: any; equal items count once.
    """
    counted = first_occurrence(groups.items)
    nothing = ~counted.any(1, keepdim=True)
    logits = group_advantages(groups.rewards, counted).masked_fill(~counted, -torch.inf).masked_fill(nothing, 0.0)
    target = logits.softmax(1).masked_fill(~counted, 0.0)
    return TermLoss(-(target.detach() * groups.log_probs.sum(-1)).sum(1))


def injected(groups: TermInputs) -> Tensor:
    """(A, G) bool: the rollout that `inject_target` put there: the last, where it alone is the logged item.

    A logged item that was drawn last and not before looks the same, and counts as injected.
    """
    same = _is_target(groups)
    last = torch.zeros_like(same)
    last[:, -1] = same[:, -1] & (same.sum(1) == 1)
    return last


def _is_target(groups: TermInputs) -> Tensor:  # (A, G) bool
    targets = _needed(groups.targets, "targets").unsqueeze(1)
    return (groups.items == targets) & (targets >= 0)


def _of_target(groups: TermInputs) -> tuple[Tensor, Tensor, Tensor]:
    """(A,) log-probability of the logged item now and at the start, and whether the group holds it."""
    same = _is_target(groups)
    place = same.to(torch.uint8).argmax(1, keepdim=True)
    reference = _needed(groups.reference, "reference")
    now, start = (values.sum(-1).gather(1, place).squeeze(1) for values in (groups.log_probs, reference))
    return now, start.detach(), same.any(1)


def _mean(values: Tensor, valid: Tensor) -> Tensor:  # (A, G) to (A,)
    """The mean over valid rollouts; 0 without any."""
    return values.masked_fill(~valid, 0.0).sum(1) / valid.sum(1).clamp(min=1)


def _centred(values: Tensor, valid: Tensor) -> Tensor:  # (A, G)
    """Less the mean over the group's valid rollouts; 0 where invalid, in value and gradient."""
    kept = values.masked_fill(~valid, 0.0)
    return (kept - _mean(kept, valid).unsqueeze(1)).masked_fill(~valid, 0.0)


def _needed(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"{name}: the term needs it, found None")
    return value


EXTENSIONS = tuple(
    Objective(term.name, term, takes_gate=True)
    for term in (
        RewardTerm("grp", grp, lambda options: True),
        RewardTerm("gryphon", gryphon, in_list_stds=frozenset({"reward_weight"})),
        RewardTerm("rloo", rloo),
        RewardTerm("gspo", gspo),
        RewardTerm("s_dpo", s_dpo, lambda options: True),
        RewardTerm("awr", awr),
        RewardTerm("goalrank", goalrank),
    )
)


def register_all() -> None:
    """Add all of them to the tables of this process, before `adagrpo.config` is imported."""
    for objective in EXTENSIONS:
        register(objective)
