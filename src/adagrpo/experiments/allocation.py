"""Assign users to arms, by a pure function of user, salt and weights:

    u = HMAC-SHA256(salt, user) / 2^64 of its first 64 bits, uniform in [0, 1)
    held out where u of (salt, "holdout") < holdout; else the arm in whose slice of the cumulated weights u falls

The size of the holdout moves no user between arms. A user takes part where u(salt "/ramp", user) < share at that time:
all arms ramp up together. Switches, lines of `PLAN.switches.jsonl`, are final:

    {"time": 1764547200.0, "share": 0.5}
    {"time": 1764550800.0, "stop": "new"}
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from errno import ENOSPC
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from adagrpo.errors import UserError
from adagrpo.experiments.plan import Plan
from adagrpo.storage.writing import sync_folder

BEGINNING = b'{"time": '  # prefix of every line


class Switches(NamedTuple):
    """Switches made so far."""

    shares: tuple[tuple[float, float], ...] = ()  # time, and the share from then on
    stops: Mapping[str, float] = MappingProxyType({})  # time by arm

    def share(self, plan: Plan, moment: float) -> float:
        """Return the share of users at a time, the plan's or a switch's."""
        planned = plan.share(moment)
        made = [share for time, share in self.shares if time <= moment]
        return max([planned, *made]) if plan.begins <= moment < plan.ends else planned

    def stopped(self, arm: str, moment: float) -> bool:
        """Return whether an arm is stopped at a time."""
        return arm in self.stops and moment >= self.stops[arm]


def switches_path(plan: Path) -> Path:
    """Return the file of a plan's switches, next to it."""
    return plan.with_name(f"{plan.name}.switches.jsonl")


def read_switches(path: Path, plan: Plan) -> Switches:
    """Read switches, but no unfinished last line; `UserError` for an invalid one."""
    file = switches_path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return Switches()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    shares: list[tuple[float, float]] = []
    stops: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            time = float(content["time"])
            if "stop" in content:
                arm = str(content["stop"])
                _check_arm(plan, arm)
                stops.setdefault(arm, time)
            else:
                shares.append((time, float(content["share"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: line {number} is no switch; take the file from a copy") from error
    return Switches(tuple(shares), stops)


def add_switch(
    path: Path, plan: Plan, *, now: float, share: float | None = None, stop: str | None = None
) -> dict[str, Any]:
    """Add a switch, durably: a larger `share`, or an arm to `stop`, from `now` on, seconds since 1970.

    Returns the line; of a stopped arm, the earlier one. UserError unless one of both is given, for a share that does
    not grow, an unknown arm, or a foreign file.
    """
    if (share is None) == (stop is None):
        raise UserError("give a share or an arm to stop, one at a time")
    file = switches_path(path)
    if file.is_symlink():
        raise UserError(f"{file}: is a link; switches are written into a file of their own, move it away")
    _wanted(path, plan, now, share, stop)  # refused before the file is opened
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "a+b", buffering=0) as target:
            fcntl.flock(target, fcntl.LOCK_EX)  # until it is closed
            line, made = _wanted(path, plan, now, share, stop)
            if not made:
                target.seek(0)
                content = target.read()
                end = content.rfind(b"\n") + 1
                if torn := content[end:]:  # an unfinished last line, taken away if it is the beginning of a switch
                    begins = torn.startswith(BEGINNING) or BEGINNING.startswith(torn)
                    if not begins or torn.rstrip().endswith(b"}"):
                        raise UserError(
                            f"{file}: its last line has no end; end it with a newline if it is a switch, or take it out"
                        )
                    target.truncate(end)
                text = (json.dumps(line) + "\n").encode()
                try:
                    if target.write(text) != len(text):
                        raise OSError(ENOSPC, os.strerror(ENOSPC))
                    os.fsync(target.fileno())
                except OSError:
                    target.truncate(end)
                    raise
        sync_folder(file.parent)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; it must be writable to switch anything") from error
    return line


def _wanted(path: Path, plan: Plan, now: float, share: float | None, stop: str | None) -> tuple[dict[str, Any], bool]:
    made = read_switches(path, plan)
    if stop is None:
        assert share is not None
        if not 0 < share <= 1:
            raise UserError(f"share: {share:g}; it is above 0 and at most 1")
        current = made.share(plan, now)
        if share <= current:
            only = "it only grows, or users would leave their arm"
            raise UserError(f"share: {share:g}, and it is {current:g} now; {only}")
        return {"time": now, "share": share}, False
    _check_arm(plan, stop)
    return {"time": made.stops.get(stop, now), "stop": stop}, stop in made.stops


def _check_arm(plan: Plan, arm: str) -> None:
    if arm not in plan.treatments:
        raise UserError(f"stop: {arm!r} is no arm that can be switched off; there are {', '.join(plan.treatments)}")


# "arm": the user's own; "interleaved": a list of both. All others get the control: "stopped" arm, "held out",
# "outside" of ramp or window, or excluded
Reason = Literal["arm", "interleaved", "stopped", "held out", "outside"]


class Assigned(NamedTuple):
    """A user's arm, and the reason; logs call it `deal`."""

    arm: str  # of the plan; the control for an interleaved list
    reason: Reason


def uniform(user: str, salt: str) -> float:
    """Return the number in [0, 1) of a user under a salt."""
    digest = hmac.new(salt.encode(), user.encode(), hashlib.sha256).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits, the precision of a float, so never 1


def assign(user: str, *, salt: str, weights: Mapping[str, float], holdout: float = 0.0) -> str | None:
    """Return the arm of a user (id or keyed hash), or None if held out; `weights` are positive."""
    if uniform(user, f"{salt}/holdout") < holdout:
        return None
    target, passed = uniform(user, salt) * sum(weights.values()), 0.0
    for arm, weight in sorted(weights.items()):
        passed += weight
        if target < passed:
            return arm
    return arm  # rounding above the last sum


def assign_by(plan: Plan, user: str) -> str | None:
    """Return a user's arm in a plan, or None if held out."""
    weights = {name: arm.weight for name, arm in plan.arms.items()}
    return assign(user, salt=plan.salt, weights=weights, holdout=plan.holdout)


def assign_at(plan: Plan, user: str, moment: float, switches: Switches) -> Assigned:
    """Return the arm of a user (keyed hash) at a moment, seconds since 1970; no later switch counts."""
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
