"""The four steps of a group: drawing, scoring, diagnostics and the gate's decision.

    draw      histories -> rollouts                          `adagrpo.groups.draw`
    score     rollouts -> rewards, and the same shuffled     `adagrpo.groups.score`
    evidence  rewards -> ranks, misses, degenerate           `adagrpo.groups.apply_gates`
    decide    evidence -> which samples are admitted         the same

All run without gradients or state; the running standard deviation of rewards is passed in and returned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.apply_gates import TrueUtility, apply_gate, gate_by_evidence, gather_evidence, running_spread
from adagrpo.groups.draw import Division, by_rows, draw_groups, score_codes
from adagrpo.groups.score import ScoredGroups, score_groups
from adagrpo.objective import GATES, Evidence, GateDecision, GroupSummary, kl_k3, rollout_entropy
from adagrpo.policies.policy import Policy
from adagrpo.rewards import Reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Rollouts


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
    spread: float  # the running standard deviation of rewards, including these

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
    spread: float,
    reference: Policy[Any, Any] | None = None,
    true_utility: TrueUtility | None = None,
    division: Division | None = None,
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
    spread = running_spread(spread, scored.rewards.rollouts[rollouts.valid])
    own, permuted = (
        gather_evidence(scored, values, options, spread=torch.tensor(spread, device=targets.device))
        for values in (scored.rewards, scored.shuffled_rewards)
    )
    decision = apply_gate(gate, scored, own, permuted, options, generator, true_utility=true_utility)
    rewards = (scored.shuffled_rewards if decides.shuffled else scored.rewards).rollouts
    before = None
    if reference is not None:
        codes, scorer = rollouts.codes, reference

        def compute(rows: Tensor | None) -> list[Tensor]:
            own_histories, own_codes = (histories, codes) if rows is None else (histories.rows(rows), codes[rows])
            return [score_codes(scorer, scorer.encode(own_histories), own_codes, catalog, options)]

        before = by_rows(division, [torch.zeros(codes.shape, device=codes.device)], compute)[0]
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
