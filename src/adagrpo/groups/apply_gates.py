"""Fourth step of a group: the decision of a gate.

At the ends of histories, a gate that needs the logged item admits all groups that are not degenerate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import GATES, Evidence, GateDecision, all_gate, pairwise_agreement

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
    """Return the decision of a gate.

    Args:
        own: evidence by the actual rewards.
        permuted: evidence by the shuffled rewards.
    """
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
    """Return the decision of a gate from evidence alone.

    Args:
        evidence: by shuffled rewards if the gate shuffles them.

    Raises:
        ValueError: an input of the gate is missing.
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
