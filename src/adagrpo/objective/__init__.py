"""The objective as pure functions of tensors: advantages, diagnostics, gates and losses."""

from adagrpo.objective.advantages import degenerate_groups, group_advantages
from adagrpo.objective.diagnostics import (
    Discriminability,
    discriminability,
    first_occurrence,
    rollout_entropy,
    rollout_miss,
    target_nll,
    target_rank,
)
from adagrpo.objective.gate import (
    GateDecision,
    adagrpo_gate,
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
    masked_mean,
    nll,
    zero_rejected,
)

__all__ = [
    "Discriminability",
    "GateDecision",
    "Surrogate",
    "adagrpo_gate",
    "all_gate",
    "clipped_surrogate",
    "degenerate_groups",
    "difficulty_gate",
    "discriminability",
    "discriminability_gate",
    "first_occurrence",
    "gated_sum",
    "group_advantages",
    "group_loss",
    "inverted_gate",
    "kl_k3",
    "masked_mean",
    "nll",
    "none_gate",
    "random_gate",
    "rollout_entropy",
    "rollout_miss",
    "target_nll",
    "target_rank",
    "zero_rejected",
]
