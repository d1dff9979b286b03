"""Users to arms: a pure function of the user, the salt and the weights, so that nothing has to be stored.

    u = HMAC-SHA256(salt, user) / 2^64 of its first 64 bits, uniform in [0, 1)
    held out where u of (salt, "holdout") < holdout; else the arm in whose slice of the cumulated weights u falls

Two salts give independent numbers, so an experiment tells nothing of who was in another one. The holdout has a number
of its own, and changing its size moves no user from one arm to another.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping


def uniform(user: str, salt: str) -> float:
    """A number in [0, 1) that is the user's under a salt.

    Example:
        >>> round(uniform("u1", "2026-11"), 6) == round(uniform("u1", "2026-11"), 6)
        True
    """
    digest = hmac.new(salt.encode(), user.encode(), hashlib.sha256).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: what a float holds, so never 1


def assign(user: str, *, salt: str, weights: Mapping[str, float], holdout: float = 0.0) -> str | None:
    """The arm of a user.

    Args:
        user: id or keyed hash; the service and the analysis must use the same one.
        weights: of the arms, positive; arms are taken by name, so the order of the keys is nothing.
        holdout: share of users that are in no arm.

    Returns:
        A key of `weights`, or None for a user who is held out.
    """
    if uniform(user, f"{salt}/holdout") < holdout:
        return None
    place, passed = uniform(user, salt) * sum(weights.values()), 0.0
    for arm, weight in sorted(weights.items()):
        passed += weight
        if place < passed:
            return arm
    return arm  # what rounding leaves above the last sum
