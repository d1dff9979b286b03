"""Rewards: what one is, the user's own and those made of others, and how a group's rewards are asked for and read."""

from adagrpo.rewards.base import Reward
from adagrpo.rewards.boosted import BoostedReward, load_model
from adagrpo.rewards.callable import CallableReward, find_module, load_function
from adagrpo.rewards.cross_fitted import CrossFitted
from adagrpo.rewards.ensemble import MeanReward, WeightedReward
from adagrpo.rewards.external import ItemId
from adagrpo.rewards.http import HttpReward
from adagrpo.rewards.noise import NoiseReward
from adagrpo.rewards.scoring import (
    BadReward,
    Candidates,
    GroupRewards,
    ask_reward,
    candidate_scores,
    constant_share,
    distinct_candidates,
    in_batch_negatives,
    read_rewards,
    score_groups,
    shuffled,
)

__all__ = [
    "BadReward",
    "BoostedReward",
    "CallableReward",
    "Candidates",
    "CrossFitted",
    "GroupRewards",
    "HttpReward",
    "ItemId",
    "MeanReward",
    "NoiseReward",
    "Reward",
    "WeightedReward",
    "ask_reward",
    "candidate_scores",
    "constant_share",
    "distinct_candidates",
    "find_module",
    "in_batch_negatives",
    "load_function",
    "load_model",
    "read_rewards",
    "score_groups",
    "shuffled",
]
