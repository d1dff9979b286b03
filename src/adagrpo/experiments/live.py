"""Running experiment of a service: the frozen plan and the current switches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.experiments.allocation import Assigned, Switches, add_switch, assign_at, read_switches, switches_path
from adagrpo.experiments.interleaving import coins, team_draft
from adagrpo.experiments.plan import PLAN_DIGITS, freeze, hash_of, moment_of, read_frozen, read_plan

LOOK_SECONDS = 0.5  # polling interval of the file of switches


class LiveExperiment:
    """Assign users by a plan."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Read a plan; `UserError` if plan or switches are invalid, or the frozen plan changed."""
        self.path, self.plan, self._clock = path, read_plan(path), clock
        self.name = self.plan.name
        self.frozen = read_frozen(path, self.plan) is not None
        self.hash = hash_of(path, self.plan)[:PLAN_DIGITS]
        self._seen, self._looked = self._stamp(), clock()  # before reading, so that a switch in between is seen later
        self.switches = self._joined(read_switches(path, self.plan), Switches())

    def freeze(self) -> None:
        """Freeze the plan, before any user is assigned."""
        freeze(self.path, self.plan, now=datetime.now(UTC))

    def arms(self) -> tuple[str, ...]:
        """Return the control, then all other arms."""
        return (self.plan.control, *self.plan.treatments)

    def assign(self, user: str) -> Assigned:
        """Return the arm that a user is served now."""
        switches = self._now()  # before the time, so that none is after it
        return assign_at(self.plan, user, self._clock(), switches)

    def draft(
        self, request_id: str, control: Sequence[object], treatment: Sequence[object], count: int
    ) -> list[tuple[int, int]]:
        """Return a draft of both lists, see `team_draft`; 0 is the control."""
        return team_draft(control, treatment, count, coins(self.plan.salt, request_id))

    def switch(self, *, share: float | None = None, stop: str | None = None) -> dict[str, Any]:
        """Add a switch, see `add_switch`; it takes effect here at once."""
        made = add_switch(self.path, self.plan, now=self._clock(), share=share, stop=stop)
        self._looked = float("-inf")
        return made

    def state(self) -> dict[str, Any]:
        """Return name, plan, share and stopped arms, as JSON."""
        switches, moment = self._now(), self._clock()
        off = {arm: moment_of(at) for arm, at in switches.stops.items()}
        return {"name": self.name, "plan": self.hash, "share": switches.share(self.plan, moment), "stopped": off}

    def _now(self) -> Switches:
        moment = self._clock()
        if not 0 <= moment - self._looked < LOOK_SECONDS:
            self._looked = moment
            stamp = self._stamp()
            if stamp != self._seen:
                with suppress(UserError):  # keep the last readable switches
                    self.switches = self._joined(read_switches(self.path, self.plan), self.switches)
                    self._seen = stamp
        return self.switches

    def _joined(self, found: Switches, before: Switches) -> Switches:
        """Merge switches: none is revoked or in the future."""
        now = self._clock()
        shares = {*before.shares, *((min(time, now), share) for time, share in found.shares)}
        stops = {arm: min(time, now) for arm, time in found.stops.items()}
        return Switches(tuple(sorted(shares)), stops | dict(before.stops))

    def _stamp(self) -> tuple[int, int]:
        try:
            found = switches_path(self.path).stat()
        except OSError:
            return 0, 0
        return found.st_size, found.st_mtime_ns
