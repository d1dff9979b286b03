"""Third and fourth step of a group: the diagnostics that a gate reads, and its decision.

Difficulty is measured on the rollouts before a logged item is injected; everything else on the rewards. At the ends of
histories, a gate that needs the logged item admits all groups that are not degenerate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.score import GroupRewards, ScoredGroups
from adagrpo.objective import (
    GATES,
    Evidence,
    GateDecision,
    all_gate,
    degenerate_groups,
    discriminability,
    pairwise_agreement,
    reward_std,
    rollout_miss,
    share_above,
)


def gather_evidence(
    groups: ScoredGroups, rewards: GroupRewards, options: ObjectiveConfig, *, spread: Tensor
) -> Evidence:
    """Compute every diagnostic of every group, given the running standard deviation of rewards, a scalar."""
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
    """Update the running standard deviation of rewards, an exponential average with decay 0.9, by (N,) valid ones.

    Before the first step it is 0; fewer than two rewards change nothing.

    >>> running_spread(0.0, torch.tensor([1.0, 3.0, 5.0])), running_spread(1.0, torch.tensor([1.0, 3.0, 5.0]))
    (2.0, 1.1)
    """
    if len(rewards) < 2:
        return before
    now = float(rewards.std())
    if not math.isfinite(now):  # squares may overflow in float32
        now = float(rewards.double().std())
    return now if before == 0.0 else 0.9 * before + 0.1 * now


# (B,) users, (B,) logged items, (B, N) items -> (B, N) utilities just before the logged item was chosen
TrueUtility = Callable[[Tensor, Tensor, Tensor], Tensor]


def apply_gate(
    name: str,
    groups: ScoredGroups,
    own: Evidence,
    permuted: Evidence,
    options: ObjectiveConfig,
    generator: torch.Generator,
    *,
    true_utility: TrueUtility | None = None,
) -> GateDecision:
    """Return the decision of a gate on evidence by the actual rewards, `own`, or by shuffled ones, `permuted`."""
    gate = GATES[name]
    if groups.target_codes is None and gate.reads_logged_item:
        return all_gate(own.degenerate)
    agreement = uniforms = None
    if gate.reads_truth and true_utility is not None:
        assert groups.histories.users is not None, "batches say whose histories they hold"
        items = groups.rollouts.items
        utilities = true_utility(groups.histories.users, groups.targets, items)
        agreement = pairwise_agreement(groups.rewards.rollouts, utilities, items).share
    if gate.draws:
        uniforms = torch.rand(len(own.degenerate), generator=generator).to(own.degenerate.device)
    evidence = permuted if gate.shuffled else own
    return gate_by_evidence(name, evidence, options, uniforms=uniforms, agreement=agreement)


def gate_by_evidence(
    name: str,
    evidence: Evidence,
    options: ObjectiveConfig,
    *,
    uniforms: Tensor | None = None,  # (B,)
    agreement: Tensor | None = None,  # (B,)
) -> GateDecision:
    """Return the decision of a gate from evidence alone, of shuffled rewards if it shuffles them.

    ValueError if an input of the gate is missing.
    """
    gate = GATES[name]
    known: dict[str, Any] = {**evidence._asdict(), "uniforms": uniforms, "agreement": agreement}
    if gate.is_shadowed:
        tested = GATES[options.tested_by(name)]
        given = options.of_gate(tested.name)
        known["shadow"] = tested.decide(known, given)
        missed = torch.ones_like(evidence.miss)
        known["shadow_if_hard"] = tested.decide({**known, "above_policy": missed, "miss": missed}, given)
    return gate.decide(known, options.of_gate(name))
