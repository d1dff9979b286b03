"""Policies over Semantic IDs.

`adagrpo.policies.causal_lm` is imported where it is used: it needs the extra `hf`.
"""

from adagrpo.policies.base import Context, DecoderState, Policy
from adagrpo.policies.compact import CompactPolicy
from adagrpo.policies.hybrid import HybridPolicy

__all__ = ["CompactPolicy", "Context", "DecoderState", "HybridPolicy", "Policy"]
