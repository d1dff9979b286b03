"""All arms of an experiment on users, served at once: each user by the arm that the plan deals.

    a user of the experiment      the arm that is the user's
    its arm was stopped           the control, and the answer says so
    lists are interleaved         a list of both arms, drafted in turn
    held out, or not reached      the control, and the answer says so
    no user is named              the control; the answer is of no experiment and not logged as of one

Arms have one catalogue, item table and history rule. Requests wait in one line and are answered arm by arm, so an arm
that is slow makes the others wait too: `latency_ms` compares what users of each arm met.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fastapi import Request, Response

from adagrpo.errors import UserError
from adagrpo.lists.recommender import ItemId
from adagrpo.serving.request_log import RequestLog
from adagrpo.serving.routes import json_response
from adagrpo.serving.schemas import BadRequest, SwitchBody, parsed, validated
from adagrpo.serving.served import Beside, InTrial, Place, Serving, Shelf, SwapFailed
from adagrpo.serving.service_metrics import ServiceMetrics

__all__ = ["ArmShelf", "Switching", "Trial"]


class _Dealt(Protocol):
    @property
    def arm(self) -> str: ...

    @property
    def deal(self) -> str: ...


class Trial(Protocol):
    """An experiment that goes on, see `adagrpo.experiments.live`."""

    @property
    def name(self) -> str:
        """Of the experiment."""
        ...

    @property
    def hash(self) -> str:
        """The first digits of that of its plan."""
        ...

    def arms(self) -> Sequence[str]:
        """The control, then all others."""
        ...

    def deal(self, user: str) -> _Dealt:
        """The arm of a user, and why it is that."""
        ...

    def draft(
        self, request_id: str, control: Sequence[ItemId], treatment: Sequence[ItemId], count: int
    ) -> list[tuple[int, int]]:
        """For each place of a list of both arms the arm, 0 or 1, and the place in that arm's list."""
        ...

    def switch(self, *, share: float | None = None, stop: str | None = None) -> dict[str, Any]:
        """Let a larger share of the users in, or switch an arm off; raises `UserError` where that cannot be."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON: name, plan, share and the arms that were stopped."""
        ...


class ArmShelf(Shelf):
    """Holds the arms of an experiment; `now` is the control."""

    def __init__(
        self,
        trial: Trial,
        load: Callable[..., Sequence[Serving]],
        another: Callable[..., Serving] | None = None,
        exchanged: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the arms.

        Args:
            trial: deals users.
            load: makes what each arm serves, in the order of `Trial.arms`; it may be told of a version of the
                catalogue, and raises `UserError` or `ServiceError`.
            another: loads an arm of the run that is not served, to be looked at.
            exchanged: see `Shelf`.
        """
        self.trial, self._load_arms = trial, load
        first = load()
        super().__init__(first[0], another, exchanged)
        self._put(first)

    @property
    def arms(self) -> Mapping[str, Serving]:
        """What each arm serves now; they were put there together."""
        return dict(zip(self.trial.arms(), self._served, strict=True))

    def places(self, users: Sequence[str | None]) -> list[Place]:
        """What users are served, by their hashes; None: the request names none. All of it was put there at once."""
        arms = self.arms
        return [self._place(arms, user) for user in users]

    def _place(self, arms: Mapping[str, Serving], user: str | None) -> Place:
        if user is None:
            return Place(arms[self.trial.arms()[0]])
        dealt = self.trial.deal(user)
        if dealt.deal == "interleaved":
            return self._both(arms, dealt.deal)
        return Place(arms[dealt.arm], InTrial(self.trial.name, self.trial.hash, dealt.arm, dealt.deal))

    def _both(self, arms: Mapping[str, Serving], deal: str) -> Place:
        first, second = self.trial.arms()
        one, other = arms[first].versions, arms[second].versions
        versions = {"model": f"{one['model']}+{other['model']}", "catalog": one["catalog"]}
        versions["arm"] = f"{one['arm']}+{other['arm']}"
        trial = InTrial(self.trial.name, self.trial.hash, f"{first}+{second}", deal, versions)
        return Place(arms[first], trial, Beside(arms[second], (first, second), self.trial.draft))

    def _fetch(self, **wanted: str) -> Sequence[Serving]:
        if {"arm", "checkpoint"} & {*wanted}:
            raise SwapFailed("an experiment serves the arms of its plan; only the catalogue may be named")
        return self._load_arms(**wanted)


class Switching:
    """`GET` and `POST /v1/admin/experiment`: how the experiment stands, and its switches."""

    def __init__(self, trial: Trial, metrics: ServiceMetrics, log: RequestLog, may_switch: bool) -> None:
        """Stand before an experiment.

        Args:
            trial: that goes on.
            metrics: say what is on.
            log: says what was switched.
            may_switch: a token is set, without which nobody may.
        """
        self.trial, self.metrics, self.log, self.may_switch = trial, metrics, log, may_switch
        self.measure()

    def measure(self) -> dict[str, Any]:
        """Set the figures of the experiment; returns its state."""
        state = self.trial.state()
        self.metrics.trial_share.set(state["share"])
        for arm in self.trial.arms():
            self.metrics.arm_on.labels(arm).set(arm not in state["stopped"])
        return state

    async def experiment(self, request: Request) -> Response:
        """How the experiment stands."""
        return json_response(self.measure())

    async def switch(self, request: Request) -> Response:
        """Let a larger share of the users in, or switch an arm off for good; its users get the control at once."""
        if not self.may_switch:
            raise BadRequest("only where a token is set", 403)
        body = validated(SwitchBody, parsed(request.state.body))
        try:
            made = await asyncio.to_thread(self.trial.switch, share=body.share, stop=body.stop)
        except UserError as error:
            raise BadRequest(str(error), 409) from error
        self.log.event("switch", **{name: value for name, value in made.items() if name != "time"})
        return json_response({"made": made, **self.measure()})
