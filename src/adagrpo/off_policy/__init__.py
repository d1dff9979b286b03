"""Off-policy evaluation: the reward of another policy, estimated from the log of the served one.

one item an answer      ips, snips, doubly_robust
a list an answer        cascade
overlap of policies     overlap
all of them on a log    `adagrpo.off_policy.estimators.summarise`
"""

from adagrpo.off_policy.estimators import (
    Estimate,
    Overlap,
    ThinOverlap,
    cascade,
    doubly_robust,
    effective_size,
    ips,
    overlap,
    snips,
)

__all__ = [
    "Estimate",
    "Overlap",
    "ThinOverlap",
    "cascade",
    "doubly_robust",
    "effective_size",
    "ips",
    "overlap",
    "snips",
]
