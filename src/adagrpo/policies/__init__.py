"""Policies over Semantic IDs; import `adagrpo.policies.causal_lm` directly, as it needs the extra `hf`."""

from adagrpo.policies.compact import CompactPolicy
from adagrpo.policies.hybrid import HybridPolicy
from adagrpo.policies.policy import Policy

__all__ = ["CompactPolicy", "HybridPolicy", "Policy"]
