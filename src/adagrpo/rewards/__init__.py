"""Rewards: the protocol, implementations, and checked scoring."""

from adagrpo.rewards.boosted import BoostedReward
from adagrpo.rewards.callable import CallableReward, load_function, module_files
from adagrpo.rewards.features import FeatureReward
from adagrpo.rewards.http import HttpReward
from adagrpo.rewards.model_files import load_model
from adagrpo.rewards.noise import NoiseReward
from adagrpo.rewards.protocol import BadReward, CrossFitted, Reward, WeightedReward, ask_reward
from adagrpo.rewards.tables import Tables

__all__ = [
    "BadReward",
    "BoostedReward",
    "CallableReward",
    "CrossFitted",
    "FeatureReward",
    "HttpReward",
    "NoiseReward",
    "Reward",
    "Tables",
    "WeightedReward",
    "ask_reward",
    "load_function",
    "load_model",
    "module_files",
]
