"""All arms of an experiment on users, served at once: each user by the arm that the plan deals.

    a user of the experiment      the arm that is the user's
    its arm was stopped           the control, and the answer says so
    lists are interleaved         a list of both arms, drafted in turn
    held out, or not reached      the control, and the answer says so
    no user is named              the control; the answer is of no experiment and not logged as of one

Arms have one catalogue, item table and history rule. Requests wait in one queue and are answered arm by arm, so an arm
that is slow makes the others wait too: `latency_ms` compares what users of each arm met.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fastapi import Request, Response

from adagrpo.errors import UserError
from adagrpo.lists.query import ItemId
from adagrpo.serving.model_manager import Assignment, Interleaved, ModelManager, Serving, SwapFailed, TrialArm
from adagrpo.serving.request_log import RequestLog
from adagrpo.serving.routes import json_response
from adagrpo.serving.schemas import BadRequest, SwitchBody, parsed, validated
from adagrpo.serving.service_metrics import ServiceMetrics


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


class ArmManager(ModelManager):
    """Holds the arms of an experiment; `now` is the control."""

    def __init__(
        self,
        trial: Trial,
        load: Callable[..., Sequence[Serving]],
        load_other: Callable[..., Serving] | None = None,
        exchanged: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the arms.

        Args:
            load: makes what each arm serves, in the order of `Trial.arms`; it may be told of a version of the
                catalogue, and raises `UserError` or `ServiceError`.
            load_other: loads an arm of the run that is not served, to be looked at.
            exchanged: see `ModelManager`.
        """
        self.trial, self._load_arms = trial, load
        first = load()
        super().__init__(first[0], load_other, exchanged)
        self._replace(first)

    @property
    def arms(self) -> Mapping[str, Serving]:
        """The model that each arm serves now; all were exchanged together."""
        return dict(zip(self.trial.arms(), self._served, strict=True))

    def assign(self, users: Sequence[str | None]) -> list[Assignment]:
        """Assign users, by their hashes, to arms; None: the request names none."""
        arms = self.arms
        return [self._assign(arms, user) for user in users]

    def _assign(self, arms: Mapping[str, Serving], user: str | None) -> Assignment:
        if user is None:
            return Assignment(arms[self.trial.arms()[0]])
        dealt = self.trial.deal(user)
        if dealt.deal == "interleaved":
            return self._both(arms, dealt.deal)
        return Assignment(arms[dealt.arm], TrialArm(self.trial.name, self.trial.hash, dealt.arm, dealt.deal))

    def _both(self, arms: Mapping[str, Serving], deal: str) -> Assignment:
        first, second = self.trial.arms()
        one, other = arms[first].versions, arms[second].versions
        versions = {"model": f"{one['model']}+{other['model']}", "catalog": one["catalog"]}
        versions["arm"] = f"{one['arm']}+{other['arm']}"
        trial = TrialArm(self.trial.name, self.trial.hash, f"{first}+{second}", deal, versions)
        return Assignment(arms[first], trial, Interleaved(arms[second], (first, second), self.trial.draft))

    def _fetch(self, **wanted: str) -> Sequence[Serving]:
        if {"arm", "checkpoint"} & {*wanted}:
            raise SwapFailed("an experiment serves the arms of its plan; only the catalogue may be named")
        return self._load_arms(**wanted)


class Switching:
    """`GET` and `POST /v1/admin/experiment`: how the experiment stands, and its switches."""

    def __init__(self, trial: Trial, metrics: ServiceMetrics, log: RequestLog, may_switch: bool) -> None:
        """Stand before an experiment."""
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
        """Answer with the state of the experiment."""
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
