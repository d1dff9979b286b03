"""Rewards: what one is, and how a group's rewards are asked for and read."""

from adagrpo.rewards.base import Reward
from adagrpo.rewards.cross_fitted import CrossFitted
from adagrpo.rewards.scoring import (
    BadReward,
    Candidates,
    GroupRewards,
    candidate_scores,
    distinct_candidates,
    in_batch_negatives,
    read_rewards,
    score_groups,
    shuffled,
)

__all__ = [
    "BadReward",
    "Candidates",
    "CrossFitted",
    "GroupRewards",
    "Reward",
    "candidate_scores",
    "distinct_candidates",
    "in_batch_negatives",
    "read_rewards",
    "score_groups",
    "shuffled",
]
