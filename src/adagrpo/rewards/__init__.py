"""Rewards: the protocol, implementations, and checked scoring."""

from adagrpo.rewards.boosted import BoostedReward, load_model
from adagrpo.rewards.callable import CallableReward, load_function, module_files, takes_training_logs
from adagrpo.rewards.cross_fitted import CrossFitted
from adagrpo.rewards.ensemble import WeightedReward
from adagrpo.rewards.feature import FeatureReward
from adagrpo.rewards.http import HttpReward
from adagrpo.rewards.noise import NoiseReward
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.scoring import BadReward, ask_reward

__all__ = [
    "BadReward",
    "BoostedReward",
    "CallableReward",
    "CrossFitted",
    "FeatureReward",
    "HttpReward",
    "NoiseReward",
    "Reward",
    "WeightedReward",
    "ask_reward",
    "load_function",
    "load_model",
    "module_files",
    "takes_training_logs",
]
