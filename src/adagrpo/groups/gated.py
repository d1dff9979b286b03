"""The four steps in order: groups of rollouts are drawn, scored by the reward, examined, and admitted by the gate.

    draw      histories -> rollouts                          `adagrpo.groups.draw`
    score     rollouts -> rewards, and the same shuffled     `adagrpo.groups.score`
    evidence  rewards -> ranks, misses, degenerate           `adagrpo.groups.evidence`
    decide    evidence -> which samples are admitted         `adagrpo.groups.apply_gates`

All without gradients, and without any state: what runs from step to step (the spread of rewards) is passed in and comes
back. Post-training and the ranker's report take all four steps at once. A diagnosis takes the first two batch by batch
and the others once for all its cases, since it knows the spread of all rewards and asks for many thresholds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.apply_gates import TrueUtility, apply_gate, gate_by_evidence
from adagrpo.groups.division import Division, by_rows
from adagrpo.groups.draw import draw_groups, score_codes
from adagrpo.groups.evidence import gather_evidence, running_spread
from adagrpo.groups.score import ScoredGroups, score_groups
from adagrpo.objective import GATES, Evidence, GateDecision, GroupSummary, kl_k3, rollout_entropy
from adagrpo.policies.policy import Policy
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Rollouts


class GatedGroups(NamedTuple):
    """The groups of `B` samples after the gate."""

    scored: ScoredGroups
    evidence: Evidence  # by the rewards as they are, whatever the gate
    shuffled_evidence: Evidence  # by the same scores, permuted within each group
    decision: GateDecision
    shuffled_decision: GateDecision | None  # of the gate, or what it is a control of, by shuffled rewards; None where
    # no logged item is read
    rewards: Tensor  # (B, G) as the reward term reads them, NaN where invalid
    reference: Tensor | None  # (B, G, L) log-probabilities under the reference policy, where one was given
    spread: float  # the running spread of rewards, these included

    @property
    def histories(self) -> Histories:  # (B, T)
        """The histories that the groups follow."""
        return self.scored.histories

    @property
    def targets(self) -> Tensor:  # (B,)
        """Logged items; -1 at the end of a history, which none follows."""
        return self.scored.targets

    @property
    def rollouts(self) -> Rollouts:  # (B, G, L)
        """The rollouts, with the logged item among them where it is injected."""
        return self.scored.rollouts


@torch.no_grad()
def gated_groups(
    policy: Policy[Any, Any],
    catalog: Catalog,
    reward: Reward,
    histories: Histories,  # (B, T)
    targets: Tensor,  # (B,)
    options: ObjectiveConfig,
    generator: torch.Generator,
    *,
    gate: str,
    spread: float,
    reference: Policy[Any, Any] | None = None,
    true_utility: TrueUtility | None = None,
    division: Division | None = None,
) -> GatedGroups:
    """Draw a group a sample, score it, and let the gate decide.

    The order of the draws is part of the result: rollouts, negatives, the permutation, those of a random control.

    Args:
        policy: draws the rollouts.
        catalog: says which item a rollout names.
        reward: is asked once.
        histories: `B` histories.
        targets: (B,) int64 logged items, or -1 everywhere at the ends of histories.
        options: which rollouts, negatives and thresholds.
        gate: the name of the one that decides; `shuffled` reads and trains on the shuffled rewards.
        spread: the running spread of rewards so far, 0 before the first step.
        reference: scores the rollouts as well, where given.
        true_utility: for the gate `oracle`.
        division: of the samples among processes, which draw and score their own; all gate all of them alike.
    """
    decides, tested = GATES[gate], GATES[options.tested_by(gate)]
    ranked = decides.reads_tests and "above_policy" in tested.reads and bool((targets >= 0).all())
    drawn = draw_groups(
        policy, catalog, histories, targets, options, generator, score_targets=ranked, division=division
    )
    scored = score_groups(reward, drawn, options.negatives, generator, source=tested.negatives, division=division)
    rollouts, logged = scored.rollouts, scored.target_codes is not None
    spread = running_spread(spread, scored.rewards.rollouts[rollouts.valid])
    own, permuted = (
        gather_evidence(scored, values, options, spread=torch.tensor(spread, device=targets.device))
        for values in (scored.rewards, scored.shuffled_rewards)
    )
    decision = apply_gate(gate, scored, own, permuted, options, generator, true_utility=true_utility)
    rewards = (scored.shuffled_rewards if decides.shuffled else scored.rewards).rollouts
    before = None
    if reference is not None:
        before = _scores(reference, catalog, histories, rollouts.codes, options, division)
    return GatedGroups(
        scored,
        own,
        permuted,
        decision,
        shuffled_decision=gate_by_evidence(tested.name, permuted, options) if logged and decides.reads_tests else None,
        rewards=rewards,
        reference=before,
        spread=spread,
    )


def _scores(
    policy: Policy[Any, Any],
    catalog: Catalog,
    histories: Histories,
    codes: Tensor,  # (B, G, L)
    options: ObjectiveConfig,
    division: Division | None,
) -> Tensor:  # (B, G, L)
    """Log-probabilities of all rollouts under another policy, each process those of its own rows."""

    def compute(rows: Tensor | None) -> list[Tensor]:
        if rows is None:
            return [score_codes(policy, policy.encode(histories), codes, catalog, options)]
        return [score_codes(policy, policy.encode(histories.rows(rows)), codes[rows], catalog, options)]

    return by_rows(division, [torch.zeros(codes.shape, device=codes.device)], compute)[0]


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
