"""The objective as pure functions of tensors: advantages, diagnostics, gates and losses.

Arguments of a wrong shape, or masks that are not bool, raise a ValueError.
"""

from adagrpo.objective.admission import Admission, admission_by_test, admission_grid, choose_thresholds
from adagrpo.objective.advantages import degenerate_groups, group_advantages, reward_std
from adagrpo.objective.diagnostics import (
    GroupSummary,
    discriminability,
    first_occurrence,
    pairwise_agreement,
    rollout_entropy,
    rollout_miss,
    share_above,
)
from adagrpo.objective.distillation import best_of_n_loss, group_mass, listwise_distillation, validity_margin
from adagrpo.objective.gates import (
    GATES,
    Evidence,
    Gate,
    GateDecision,
    adagrpo_gate,
    all_gate,
    difficulty_gate,
    none_gate,
    random_gate,
    variance_gate,
)
from adagrpo.objective.losses import clipped_surrogate, gated_sum, group_loss, kl_k3, nll, zero_rejected

__all__ = [
    "GATES",
    "Admission",
    "Evidence",
    "Gate",
    "GateDecision",
    "GroupSummary",
    "adagrpo_gate",
    "admission_by_test",
    "admission_grid",
    "all_gate",
    "best_of_n_loss",
    "choose_thresholds",
    "clipped_surrogate",
    "degenerate_groups",
    "difficulty_gate",
    "discriminability",
    "first_occurrence",
    "gated_sum",
    "group_advantages",
    "group_loss",
    "group_mass",
    "kl_k3",
    "listwise_distillation",
    "nll",
    "none_gate",
    "pairwise_agreement",
    "random_gate",
    "reward_std",
    "rollout_entropy",
    "rollout_miss",
    "share_above",
    "validity_margin",
    "variance_gate",
    "zero_rejected",
]
