"""Assign users to arms by a pure function of user, salt and weights.

    u = HMAC-SHA256(salt, user) / 2^64 of its first 64 bits, uniform in [0, 1)
    held out where u of (salt, "holdout") < holdout; else the arm in whose slice of the cumulated weights u falls

The size of the holdout moves no user between arms.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping


def uniform(user: str, salt: str) -> float:
    """Return the number in [0, 1) of a user under a salt.

    Example:
        >>> round(uniform("u1", "2026-11"), 6) == round(uniform("u1", "2026-11"), 6)
        True
    """
    digest = hmac.new(salt.encode(), user.encode(), hashlib.sha256).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits, the precision of a float, so never 1


def assign(user: str, *, salt: str, weights: Mapping[str, float], holdout: float = 0.0) -> str | None:
    """Return the arm of a user, or None if held out.

    Args:
        user: id or keyed hash, the same for service and analysis.
        weights: by arm, positive.
        holdout: share of users in no arm.
    """
    if uniform(user, f"{salt}/holdout") < holdout:
        return None
    place, passed = uniform(user, salt) * sum(weights.values()), 0.0
    for arm, weight in sorted(weights.items()):
        passed += weight
        if place < passed:
            return arm
    return arm  # rounding above the last sum
