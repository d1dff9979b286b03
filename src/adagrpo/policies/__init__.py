"""Policies over Semantic IDs."""

from adagrpo.policies.base import DecoderState, Policy
from adagrpo.policies.compact import CompactPolicy

__all__ = ["CompactPolicy", "DecoderState", "Policy"]
