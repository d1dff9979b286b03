"""Policies over Semantic IDs."""

from adagrpo.policies.base import DecoderState, Policy
from adagrpo.policies.compact import CompactPolicy
from adagrpo.policies.hybrid import HybridPolicy

__all__ = ["CompactPolicy", "DecoderState", "HybridPolicy", "Policy"]
