"""The arm of a user in a running experiment: the hash of `allocation`, the ramp, and the switches.

    in        u(salt "/ramp", user) < share of the experiment at that time
    arm       `assign`; who is in an arm stays there as the share grows, since neither number changes

All arms grow together. So at each moment they have users by their weights, and a day with a larger share counts for all
of them alike; if the treatment alone grew, a good day late in the ramp would look like its effect.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from adagrpo.experiments.allocation import assign, uniform
from adagrpo.experiments.plan import Plan
from adagrpo.experiments.switches import Switches

# "arm": the user's own; "interleaved": a list of both. All others get the control: "stopped", as the arm is off;
# "held out"; "outside", as the share of the experiment does not reach the user, or its time is not now
Deal = Literal["arm", "interleaved", "stopped", "held out", "outside"]


class Dealt(NamedTuple):
    """The arm of a user, and why it is that."""

    arm: str  # of the plan; of an interleaved list the control, into which the other arm's items are drafted
    deal: Deal


def deal(plan: Plan, user: str, moment: float, switches: Switches) -> Dealt:
    """The arm that a user is served.

    Args:
        user: keyed hash, as the exposure log has it.
        moment: seconds since 1970.
        switches: that were made until then; later ones change nothing.
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
