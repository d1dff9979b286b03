"""Assign users to arms.

By a pure function of user, salt and weights:

    u = HMAC-SHA256(salt, user) / 2^64 of its first 64 bits, uniform in [0, 1)
    held out where u of (salt, "holdout") < holdout; else the arm in whose slice of the cumulated weights u falls

The size of the holdout moves no user between arms.

In a running experiment, a user takes part where u(salt "/ramp", user) < share at that time. All arms ramp up together,
so that no trend looks like an effect.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal, NamedTuple

from adagrpo.experiments.plan import Plan
from adagrpo.experiments.switches import Switches

# "arm": the user's own; "interleaved": a list of both. All others get the control: "stopped" arm, "held out",
# "outside" of ramp or window, or excluded
Reason = Literal["arm", "interleaved", "stopped", "held out", "outside"]


class Assigned(NamedTuple):
    """Arm that a user is served, and the reason; rows of logs call it `deal`."""

    arm: str  # of the plan; the control for an interleaved list
    reason: Reason


def uniform(user: str, salt: str) -> float:
    """Return the number in [0, 1) of a user under a salt."""
    digest = hmac.new(salt.encode(), user.encode(), hashlib.sha256).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits, the precision of a float, so never 1


def assign(user: str, *, salt: str, weights: Mapping[str, float], holdout: float = 0.0) -> str | None:
    """Return the arm of a user (id or keyed hash), or None if held out; `weights` by arm are positive."""
    if uniform(user, f"{salt}/holdout") < holdout:
        return None
    target, passed = uniform(user, salt) * sum(weights.values()), 0.0
    for arm, weight in sorted(weights.items()):
        passed += weight
        if target < passed:
            return arm
    return arm  # rounding above the last sum


def assign_by(plan: Plan, user: str) -> str | None:
    """Return the arm that a plan gives a user, or None if held out."""
    return assign(
        user, salt=plan.salt, weights={name: arm.weight for name, arm in plan.arms.items()}, holdout=plan.holdout
    )


def assign_at(plan: Plan, user: str, moment: float, switches: Switches) -> Assigned:
    """Return the arm that a user (keyed hash) is served at a moment, seconds since 1970; no later switch counts."""
    if uniform(user, f"{plan.salt}/ramp") >= switches.share(plan, moment) or user in plan.exclude:
        return Assigned(plan.control, "outside")
    arm = assign_by(plan, user)
    if arm is None:
        return Assigned(plan.control, "held out")
    if plan.kind == "interleaving":
        (arm,) = plan.treatments
    if switches.stopped(arm, moment):
        return Assigned(plan.control, "stopped")
    if plan.kind == "interleaving":
        return Assigned(plan.control, "interleaved")
    return Assigned(arm, "arm")
