"""What another policy would have earned, from the log of the one that was served: pure functions of arrays.

one item an answer      ips, snips, doubly_robust      `adagrpo.off_policy.estimators`
a list an answer        cascade                        `adagrpo.off_policy.cascades`
                        by_place, place_chances        `adagrpo.off_policy.place_weights`
                        pseudo_inverse_weights         `adagrpo.off_policy.pseudo_inverse`
whether to believe it   overlap                        `adagrpo.off_policy.overlap`
all of them on a log    summarise                      `adagrpo.off_policy.every_estimator`
"""

from adagrpo.off_policy.cascades import cascade
from adagrpo.off_policy.estimators import Estimate, doubly_robust, ips, snips
from adagrpo.off_policy.overlap import Overlap, ThinOverlap, effective_size, overlap
from adagrpo.off_policy.place_weights import by_place, place_chances
from adagrpo.off_policy.pseudo_inverse import pseudo_inverse_weights

__all__ = [
    "Estimate",
    "Overlap",
    "ThinOverlap",
    "by_place",
    "cascade",
    "doubly_robust",
    "effective_size",
    "ips",
    "overlap",
    "place_chances",
    "pseudo_inverse_weights",
    "snips",
]
