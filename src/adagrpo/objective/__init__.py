"""The objective as pure functions of tensors: advantages, diagnostics, gates and losses."""

from adagrpo.objective.advantages import degenerate_groups, group_advantages
from adagrpo.objective.diagnostics import (
    Agreement,
    Discriminability,
    discriminability,
    first_occurrence,
    pairwise_agreement,
    rollout_entropy,
    rollout_miss,
    target_nll,
)
from adagrpo.objective.distillation import (
    GroupMass,
    best_of_n_loss,
    group_mass,
    listwise_distillation,
    validity_margin,
)
from adagrpo.objective.gate import (
    GateDecision,
    adagrpo_gate,
    agreement_gate,
    all_gate,
    difficulty_gate,
    discriminability_gate,
    inverted_gate,
    none_gate,
    random_gate,
)
from adagrpo.objective.losses import (
    Surrogate,
    clipped_surrogate,
    gated_sum,
    group_loss,
    kl_k3,
    nll,
    zero_rejected,
)

__all__ = [
    "Agreement",
    "Discriminability",
    "GateDecision",
    "GroupMass",
    "Surrogate",
    "adagrpo_gate",
    "agreement_gate",
    "all_gate",
    "best_of_n_loss",
    "clipped_surrogate",
    "degenerate_groups",
    "difficulty_gate",
    "discriminability",
    "discriminability_gate",
    "first_occurrence",
    "gated_sum",
    "group_advantages",
    "group_loss",
    "group_mass",
    "inverted_gate",
    "kl_k3",
    "listwise_distillation",
    "nll",
    "none_gate",
    "pairwise_agreement",
    "random_gate",
    "rollout_entropy",
    "rollout_miss",
    "target_nll",
    "validity_margin",
    "zero_rejected",
]
