"""Last step of a group: which samples the reward may move, by each gate of `adagrpo.objective.gates`.

`difficulty`, `discriminability`, `random`, `inverted` and `shuffled` are controls of a gate that tests the logged item;
the option `control_of` says of which. At the ends of histories no logged item follows, so a gate that reads it admits
there all groups whose rewards give an order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adagrpo.config import ObjectiveConfig
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import GATES, Evidence, GateDecision, all_gate, pairwise_agreement

# (B,) users, (B,) logged items and (B, N) items to the (B, N) utility of those just before the logged item was chosen
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
    """Decide as any gate does.

    Args:
        groups: `B` groups.
        own: their evidence by the rewards as they are.
        permuted: the same by the shuffled rewards.
        generator: of the draws of a gate that draws.
        true_utility: what the reward is compared with, for a gate that reads the truth.
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
    """Decide as a gate does, by what is known of its groups.

    Args:
        evidence: of `B` groups; by shuffled rewards where the gate shuffles them.
        uniforms: (B,) draws from [0, 1), for a gate that draws.
        agreement: (B,) share of each group's pairs in the right order, for a gate that reads the truth.

    Raises:
        ValueError: the gate reads one of these that is not given.
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
