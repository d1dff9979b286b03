"""Groups of rollouts: drawn, scored, examined and admitted by a gate, the same for training, diagnosis and reports."""

from adagrpo.groups.decide import TrueUtility, apply_gate, gate_by_evidence, running_threshold
from adagrpo.groups.draw import (
    DrawnGroups,
    beam_rollouts,
    draw_groups,
    draw_rollouts,
    gumbel_rollouts,
    inject_target,
    score_codes,
)
from adagrpo.groups.evidence import Evidence, gather_evidence, running_spread
from adagrpo.groups.gated import GatedGroups, gated_groups, summary
from adagrpo.groups.score import (
    Candidates,
    GroupRewards,
    ScoredGroups,
    constant_share,
    distinct_candidates,
    in_batch_negatives,
    read_rewards,
    score_groups,
    shuffled,
)

__all__ = [
    "Candidates",
    "DrawnGroups",
    "Evidence",
    "GatedGroups",
    "GroupRewards",
    "ScoredGroups",
    "TrueUtility",
    "apply_gate",
    "beam_rollouts",
    "constant_share",
    "distinct_candidates",
    "draw_groups",
    "draw_rollouts",
    "gate_by_evidence",
    "gated_groups",
    "gather_evidence",
    "gumbel_rollouts",
    "in_batch_negatives",
    "inject_target",
    "read_rewards",
    "running_spread",
    "running_threshold",
    "score_codes",
    "score_groups",
    "shuffled",
    "summary",
]
