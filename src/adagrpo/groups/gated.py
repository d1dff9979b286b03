"""The four steps of a group: drawing, scoring, diagnostics and the gate's decision.

Difficulty is of the rollouts before an injected logged item. At the ends of histories a gate that needs the logged item
admits all groups that are not degenerate.

All run without gradients or state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.draw import Division, draw_groups, score_codes, undivided
from adagrpo.groups.score import GroupRewards, ScoredGroups, score_groups
from adagrpo.objective import (
    GATES,
    Evidence,
    GateDecision,
    GroupSummary,
    all_gate,
    degenerate_groups,
    discriminability,
    kl_k3,
    pairwise_agreement,
    reward_std,
    rollout_entropy,
    rollout_miss,
    share_above,
)
from adagrpo.policies.policy import Policy
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Rollouts


def gather_evidence(
    groups: ScoredGroups, rewards: GroupRewards, options: ObjectiveConfig, *, running_std: Tensor
) -> Evidence:
    """Compute every diagnostic of every group; `running_std` is a scalar."""
    items, targets = groups.rollouts.items, groups.targets
    degenerate = degenerate_groups(
        rewards.rollouts, items, running_std=running_std, relative_floor=options.reward_floor
    )
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


def update_running_std(before: float, rewards: Tensor) -> float:
    """Update the running standard deviation, an exponential average with decay 0.9, by (N,) valid rewards.

    Before the first step it is 0; fewer than two rewards change nothing.
    """
    if len(rewards) < 2:
        return before
    now = float(rewards.std())
    if not math.isfinite(now):  # squares may overflow in float32
        now = float(rewards.double().std())
    return now if before == 0.0 else 0.9 * before + 0.1 * now


# (B,) users, (B,) logged items, (B, N) items -> (B, N) utilities just before the logged item was chosen
TrueUtility = Callable[[Tensor, Tensor, Tensor], Tensor]


def gate_by_evidence(
    name: str,
    evidence: Evidence,
    options: ObjectiveConfig,
    *,
    uniforms: Tensor | None = None,  # (B,)
    agreement: Tensor | None = None,  # (B,)
) -> GateDecision:
    """Return the decision of a gate from evidence, of shuffled rewards if it shuffles them.

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


class GatedGroups(NamedTuple):
    """The groups of `B` samples after the gate."""

    scored: ScoredGroups
    evidence: Evidence  # by the actual rewards, whatever the gate
    shuffled_evidence: Evidence  # by the same scores, permuted within each group
    decision: GateDecision
    shuffled_decision: GateDecision | None  # of the gate, or the one it is a control of, by shuffled rewards;
    # None where no logged item is read
    rewards: Tensor  # (B, G) as the reward term reads them, NaN where invalid
    reference: Tensor | None  # (B, G, L) log-probabilities under the reference policy, if given
    running_std: float  # the running standard deviation of rewards, including these

    @property
    def histories(self) -> Histories:  # (B, T)
        """The histories of the groups."""
        return self.scored.histories

    @property
    def targets(self) -> Tensor:  # (B,)
        """Logged items, -1 at the ends of histories."""
        return self.scored.targets

    @property
    def rollouts(self) -> Rollouts:  # (B, G, L)
        """The rollouts, including injected logged items."""
        return self.scored.rollouts


@torch.no_grad()
def gated_groups(
    policy: Policy[Any, Any],
    catalog: Catalog,
    reward: Reward,
    histories: Histories,  # (B, T)
    targets: Tensor,  # (B,) logged items, or -1 everywhere at the ends of histories
    options: ObjectiveConfig,
    generator: torch.Generator,
    *,
    gate: str,
    running_std: float,
    reference: Policy[Any, Any] | None = None,
    true_utility: TrueUtility | None = None,
    division: Division = undivided,
) -> GatedGroups:
    """Draw and score one group per sample, and let the gate decide; `shuffled` trains on shuffled rewards.

    Random numbers are drawn in a fixed order: rollouts, negatives, the permutation, the gate.
    """
    decides, tested = GATES[gate], GATES[options.tested_by(gate)]
    ranked = decides.reads_tests and "above_policy" in tested.reads and bool((targets >= 0).all())
    drawn = draw_groups(
        policy, catalog, histories, targets, options, generator, score_targets=ranked, division=division
    )
    scored = score_groups(reward, drawn, options.negatives, generator, source=tested.negatives, division=division)
    rollouts, logged = scored.rollouts, scored.target_codes is not None
    running_std = update_running_std(running_std, scored.rewards.rollouts[rollouts.valid])
    own, permuted = (
        gather_evidence(scored, values, options, running_std=torch.tensor(running_std, device=targets.device))
        for values in (scored.rewards, scored.shuffled_rewards)
    )
    if decides.reads_logged_item and not logged:
        decision = all_gate(own.degenerate)
    else:
        agreement = uniforms = None
        if decides.reads_truth and true_utility is not None:
            assert histories.users is not None, "batches say whose histories they hold"
            utilities = true_utility(histories.users, targets, rollouts.items)
            agreement = pairwise_agreement(scored.rewards.rollouts, utilities, rollouts.items).share
        if "uniforms" in decides.reads:
            uniforms = torch.rand(len(targets), generator=generator).to(targets.device)
        evidence = permuted if decides.shuffled else own
        decision = gate_by_evidence(gate, evidence, options, uniforms=uniforms, agreement=agreement)
    rewards = (scored.shuffled_rewards if decides.shuffled else scored.rewards).rollouts
    before = None
    if reference is not None:
        codes, scorer = rollouts.codes, reference

        def compute(rows: Tensor | None) -> list[Tensor]:
            own_histories, own_codes = (histories, codes) if rows is None else (histories.rows(rows), codes[rows])
            return [score_codes(scorer, scorer.encode(own_histories), own_codes, catalog, options)]

        (before,) = division([torch.zeros(codes.shape, device=codes.device)], compute)
    return GatedGroups(
        scored,
        own,
        permuted,
        decision,
        shuffled_decision=gate_by_evidence(tested.name, permuted, options) if logged and decides.reads_tests else None,
        rewards=rewards,
        reference=before,
        running_std=running_std,
    )


def summary(groups: GatedGroups) -> GroupSummary:
    """Summarise the groups of a step for its log."""
    scored, rollouts, decision = groups.scored, groups.rollouts, groups.decision
    sampled, valid = scored.sampled, rollouts.valid
    contains = admitted_contains = None
    if scored.target_codes is not None:
        contains = (rollouts.items == groups.targets.unsqueeze(1)).any(1)
        admitted_contains = contains[decision.admitted]
    kl = None if groups.reference is None else kl_k3(rollouts.log_probs, groups.reference).mean(dim=2).mean(dim=1)
    shuffled = None if groups.shuffled_decision is None else groups.shuffled_decision.admitted
    return GroupSummary(
        invalid_share=float((~sampled.valid).float().mean(dim=1).mean()),
        entropy=float(rollout_entropy(sampled.log_probs).mean()),
        admission=_mean(decision.admitted),
        rejected_easy=_mean(decision.easy),
        rejected_undiscriminated=_mean(decision.undiscriminated),
        rejected_degenerate=_mean(decision.degenerate),
        rejected_closed=_mean(decision.closed),
        scored_pairs=float(scored.rewards.scored),
        empty_groups=float((~valid).all(1).sum()) or None,
        reward=_mean(scored.rewards.rollouts[valid]),
        contains_target=_mean(contains),
        admitted_contains_target=_mean(admitted_contains),
        kl=_mean(kl),
        constant_rewards=scored.constant,
        shuffled_admission=_mean(shuffled),
    )


def _mean(values: Tensor | None) -> float | None:
    return None if values is None or len(values) == 0 else float(values.float().mean())
