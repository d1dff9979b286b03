"""Switches of a running experiment: a larger share of the users, or an arm off.

The switches lie beside the plan, in `PLAN.switches.jsonl`: one line each, in the order of time, only ever added to.
All that serve the plan read them there, and so does the analysis.

    {"time": 1764547200.0, "share": 0.5}     half of the users are in the experiment from now on
    {"time": 1764550800.0, "stop": "new"}    users of the arm get the control from now on

Neither is taken back: the share only grows, so that no user leaves an arm, and users of an arm that was off have seen
two of them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from errno import ENOSPC
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.experiments.plan import Plan
from adagrpo.storage.writing import sync_folder

BEGINNING = b'{"time": '  # of every line


class Switches(NamedTuple):
    """Switches that were made."""

    shares: tuple[tuple[float, float], ...] = ()  # when, and the share from then on
    stops: Mapping[str, float] = MappingProxyType({})  # when, by arm

    def share(self, plan: Plan, moment: float) -> float:
        """The share of the users that is in the experiment at a time: the plan's, or a larger one that was set."""
        planned = plan.share(moment)
        made = [share for time, share in self.shares if time <= moment]
        return max([planned, *made]) if plan.begins <= moment < plan.ends else planned

    def stopped(self, arm: str, moment: float) -> bool:
        """Check that an arm is off at a time."""
        return arm in self.stops and moment >= self.stops[arm]


def switches_path(plan: Path) -> Path:
    """Return the file of a plan's switches, next to it."""
    return plan.with_name(f"{plan.name}.switches.jsonl")


def read_switches(path: Path, plan: Plan) -> Switches:
    """The switches of a plan; none where the file is not there. A line that is being written does not count yet.

    Raises:
        UserError: a line is no switch.
    """
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
    """Make a switch; durable when this returns.

    Args:
        now: seconds since 1970.
        share: of the users that are in the experiment from now on.

    Returns:
        The line that was written; of an arm that is off already, the one that was.

    Raises:
        UserError: neither or both are given, the share would not grow, there is no such arm to switch off, or a link or
            a file of something else has the place of the switches. Nothing is changed then.
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
                _drop_torn(target, file)
                _append(target, (json.dumps(line) + "\n").encode())
        sync_folder(file.parent)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; it must be writable to switch anything") from error
    return line


def _wanted(path: Path, plan: Plan, now: float, share: float | None, stop: str | None) -> tuple[dict[str, Any], bool]:
    """The line of a switch, and whether it stands there already; refused as `add_switch` says."""
    made = read_switches(path, plan)
    if stop is None:
        assert share is not None
        if not 0 < share <= 1:
            raise UserError(f"share: {share:g}; it is above 0 and at most 1")
        there = made.share(plan, now)
        if share <= there:
            raise UserError(f"share: {share:g}, and it is {there:g} now; it only grows, or users would leave their arm")
        return {"time": now, "share": share}, False
    _check_arm(plan, stop)
    return {"time": made.stops.get(stop, now), "stop": stop}, stop in made.stops


def _drop_torn(target: FileIO, file: Path) -> None:
    """Cut off the beginning of a line behind the last whole one: its writer was stopped halfway, and it never held.

    Raises:
        UserError: it is anything else, and stays.
    """
    target.seek(0)
    content = target.read()
    whole = content.rfind(b"\n") + 1
    torn = content[whole:]
    if not torn:
        return
    if not (torn.startswith(BEGINNING) or BEGINNING.startswith(torn)) or torn.rstrip().endswith(b"}"):
        raise UserError(f"{file}: its last line has no end; end it with a newline if it is a switch, or take it out")
    target.truncate(whole)


def _append(target: FileIO, line: bytes) -> None:
    """Write a line to the end, all of it or none."""
    before = target.seek(0, os.SEEK_END)
    try:
        if target.write(line) != len(line):
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        os.fsync(target.fileno())
    except OSError:
        target.truncate(before)
        raise


def _check_arm(plan: Plan, arm: str) -> None:
    if arm not in plan.treatments:
        raise UserError(f"stop: {arm!r} is no arm that can be switched off; there are {', '.join(plan.treatments)}")
