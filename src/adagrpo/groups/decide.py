"""Last step of a group: which samples the reward may move, by each gate.

Most gates read the evidence alone (`gate_by_evidence`). `difficulty`, `discriminability`, `random`, `inverted` and
`shuffled` are controls of one of the two gates that read the logged item, `adagrpo` or `rollout_miss`; the option
`control_of` says of which. `oracle` asks whether the truth orders a group's rollouts as
the reward does. At the ends of histories no logged item follows, so a gate admits there all groups whose rewards give
an order, or none; only `bernoulli`, which looks at nothing, decides there as elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from adagrpo.config import Gate, LoggedItemGate, ObjectiveConfig
from adagrpo.groups.evidence import Evidence
from adagrpo.groups.score import ScoredGroups
from adagrpo.objective import (
    GateDecision,
    adagrpo_gate,
    agreement_gate,
    all_gate,
    bernoulli_gate,
    difficulty_gate,
    inverted_gate,
    none_gate,
    pairwise_agreement,
    random_gate,
    rollout_miss_gate,
)

__all__ = ["TrueUtility", "apply_gate", "gate_by_evidence"]

DRAWN = ("random", "bernoulli", "inverted")  # gates that draw by chance
UNREAD = ("all", "none", "bernoulli", "oracle")  # gates that read no logged item

# (B,) users, (B,) logged items and (B, N) items to the (B, N) utility of those just before the logged item was chosen
TrueUtility = Callable[[Tensor, Tensor, Tensor], Tensor]


def apply_gate(
    gate: Gate,
    groups: ScoredGroups,
    own: Evidence,
    permuted: Evidence,
    options: ObjectiveConfig,
    generator: torch.Generator,
    *,
    true_utility: TrueUtility | None = None,
) -> GateDecision:
    """The decision of any gate.

    Args:
        gate: `shuffled` decides by the evidence of shuffled rewards.
        groups: `B` groups.
        own: their evidence by the rewards as they are.
        permuted: the same by the shuffled rewards.
        options: thresholds.
        generator: of the draws of `random`, `bernoulli` and `inverted`.
        true_utility: what `oracle` compares the reward with.
    """
    if groups.target_codes is None and gate != "bernoulli":
        return none_gate(own.degenerate) if gate == "none" else all_gate(own.degenerate)
    if true_utility is not None:
        assert groups.histories.users is not None, "batches say whose histories they hold"
        items = groups.rollouts.items
        utilities = true_utility(groups.histories.users, groups.targets, items)
        share = pairwise_agreement(groups.rewards.rollouts, utilities, items).share
        return agreement_gate(share, own.degenerate, minimum=options.oracle_agreement)
    uniforms = None
    if gate in DRAWN:
        uniforms = torch.rand(len(own.degenerate), generator=generator).to(own.degenerate.device)
    return gate_by_evidence(gate, permuted if gate == "shuffled" else own, options, uniforms)


def gate_by_evidence(
    gate: Gate,
    evidence: Evidence,
    options: ObjectiveConfig,
    uniforms: Tensor | None = None,  # (B,)
) -> GateDecision:
    """The decision of any gate but `oracle`, which reads what the reward does not say.

    Args:
        gate: `shuffled` decides by the evidence of shuffled rewards.
        evidence: of the groups.
        options: thresholds.
        uniforms: (B,) draws from [0, 1) for `random`, `bernoulli` and `inverted`.

    Raises:
        ValueError: one of these without draws, or `oracle`.
    """
    degenerate = evidence.degenerate
    if gate in DRAWN and uniforms is None:
        raise ValueError(f"gate '{gate}' is not decided by evidence without draws")
    match gate:
        case "adagrpo" | "rollout_miss":
            return _reads_logged_item(gate, evidence, options)
        case "shuffled":
            return _reads_logged_item(options.control_of, evidence, options)
        case "all":
            return all_gate(degenerate)
        case "none":
            return none_gate(degenerate)
        case "difficulty":
            return difficulty_gate(_reads_logged_item(options.control_of, evidence, options))
        case "discriminability":
            within = options.tau if options.tau_reward is None else options.tau_reward
            easiest = options.model_copy(update={"tau": 0.0, "tau_reward": within, "miss_min": 0.0})
            return _reads_logged_item(options.control_of, evidence, easiest)
        case "bernoulli":
            assert uniforms is not None
            return bernoulli_gate(degenerate, uniforms, rate=options.admission_rate)
        case "random" | "inverted":
            assert uniforms is not None
            shadow = _reads_logged_item(options.control_of, evidence, options)
            control = random_gate if gate == "random" else inverted_gate
            return control(shadow, degenerate, uniforms)
        case "oracle":
            raise ValueError("gate 'oracle' is not decided by evidence")
        case _:
            assert_never(gate)


def _reads_logged_item(gate: LoggedItemGate, evidence: Evidence, options: ObjectiveConfig) -> GateDecision:
    if gate == "rollout_miss":
        return rollout_miss_gate(
            evidence.miss, evidence.q, evidence.degenerate, miss_min=options.miss_min, q_min=options.q_min
        )
    return adagrpo_gate(
        evidence.above_policy,
        evidence.above_reward,
        evidence.negatives_above,
        evidence.degenerate,
        tau=options.tau,
        rho=options.rho,
        tau_reward=options.tau_reward,
        rho_from=options.rho_from,
    )
