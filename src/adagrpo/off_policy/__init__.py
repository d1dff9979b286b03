"""Off-policy evaluation: the reward of another policy, estimated from the log of the served one.

one item an answer      ips, snips, doubly_robust      `adagrpo.off_policy.estimators`
a list an answer        cascade                        `adagrpo.off_policy.cascades`
overlap of policies     overlap                        `adagrpo.off_policy.overlap`
all of them on a log    summarise                      `adagrpo.off_policy.all_estimates`
"""

from adagrpo.off_policy.cascades import cascade
from adagrpo.off_policy.estimators import Estimate, doubly_robust, ips, snips
from adagrpo.off_policy.overlap import Overlap, ThinOverlap, effective_size, overlap

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
