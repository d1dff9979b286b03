"""Arm of a user in a running experiment: allocation, ramp and switches.

A user takes part where u(salt "/ramp", user) < share at that time. All arms ramp up together, so that no trend looks
like an effect.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from adagrpo.experiments.allocation import assign, uniform
from adagrpo.experiments.plan import Plan
from adagrpo.experiments.switches import Switches

# "arm": the user's own; "interleaved": a list of both. All others get the control: "stopped" arm, "held out",
# "outside" of ramp or window, or excluded
Deal = Literal["arm", "interleaved", "stopped", "held out", "outside"]


class Dealt(NamedTuple):
    """Arm of a user, and the reason."""

    arm: str  # of the plan; the control for an interleaved list
    deal: Deal


def deal(plan: Plan, user: str, moment: float, switches: Switches) -> Dealt:
    """Return the arm that a user is served.

    Args:
        user: keyed hash, as in the exposure log.
        moment: seconds since 1970.
        switches: later ones have no effect.
    """
    if uniform(user, f"{plan.salt}/ramp") >= switches.share(plan, moment) or user in plan.exclude:
        return Dealt(plan.control, "outside")
    weights = {name: arm.weight for name, arm in plan.arms.items()}
    arm = assign(user, salt=plan.salt, weights=weights, holdout=plan.holdout)
    if arm is None:
        return Dealt(plan.control, "held out")
    if plan.kind == "interleaving":
        (arm,) = plan.treatments
    if switches.stopped(arm, moment):
        return Dealt(plan.control, "stopped")
    if plan.kind == "interleaving":
        return Dealt(plan.control, "interleaved")
    return Dealt(arm, "arm")
