"""Groups of rollouts: drawn, scored, examined and admitted by a gate, the same for training, diagnosis and reports."""

from adagrpo.groups.apply_gates import TrueUtility, apply_gate, gate_by_evidence
from adagrpo.groups.draw import DrawnGroups, draw_groups, draw_rollouts
from adagrpo.groups.evidence import gather_evidence
from adagrpo.groups.gated import GatedGroups, gated_groups, summary
from adagrpo.groups.negatives import in_batch_negatives, other_rollouts
from adagrpo.groups.score import GroupRewards, ScoredGroups, score_groups

__all__ = [
    "DrawnGroups",
    "GatedGroups",
    "GroupRewards",
    "ScoredGroups",
    "TrueUtility",
    "apply_gate",
    "draw_groups",
    "draw_rollouts",
    "gate_by_evidence",
    "gated_groups",
    "gather_evidence",
    "in_batch_negatives",
    "other_rollouts",
    "score_groups",
    "summary",
]
