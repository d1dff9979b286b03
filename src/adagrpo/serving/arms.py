"""Serve all arms of an experiment at once, each user by the arm that the plan assigns.

Users in no active arm, and requests without a user, get the control. All arms share one queue, so a slow one delays the
others too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response

from adagrpo.errors import UserError
from adagrpo.experiments.live import LiveExperiment
from adagrpo.serving.model_manager import Assignment, Interleaved, ModelManager, Serving, SwapFailed, TrialArm
from adagrpo.serving.options import Options
from adagrpo.serving.routes import json_response
from adagrpo.serving.schemas import BadRequest, SwitchBody, parsed, validated
from adagrpo.serving.service_metrics import ServiceMetrics


class ArmManager(ModelManager):
    """Hold the arms of an experiment; `now` is the control."""

    def __init__(
        self,
        trial: LiveExperiment,
        load: Callable[..., Sequence[Serving]],
        load_other: Callable[..., Serving] | None = None,
        exchanged: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the arms: `load` returns them in the order of `trial.arms`; see `ModelManager`."""
        self.trial, self._load_arms = trial, load
        first = load()
        super().__init__(first[0], load_other, exchanged)
        self._served = tuple(first)

    @property
    def arms(self) -> Mapping[str, Serving]:
        """Served models by arm, of one swap."""
        return dict(zip(self.trial.arms(), self._served, strict=True))

    def assign(self, users: Sequence[str | None]) -> list[Assignment]:
        """Assign users, by hash or None, to arms."""
        arms, trial = self.arms, self.trial
        first, *others = trial.arms()
        assignments = []
        for user in users:
            arm, reason = (first, None) if user is None else trial.assign(user)
            if reason is None:
                assignments.append(Assignment(arms[first]))
            elif reason == "interleaved":
                (second,) = others
                one, other = arms[first].versions, arms[second].versions
                versions = {"model": f"{one['model']}+{other['model']}", "catalog": one["catalog"]}
                versions["arm"] = f"{one['arm']}+{other['arm']}"
                both = TrialArm(trial.name, trial.hash, f"{first}+{second}", reason, versions)
                interleaved = Interleaved(arms[second], (first, second), trial.draft)
                assignments.append(Assignment(arms[first], both, interleaved))
            else:
                assignments.append(Assignment(arms[arm], TrialArm(trial.name, trial.hash, arm, reason)))
        return assignments

    def _fetch(self, **wanted: str) -> Sequence[Serving]:
        if {"arm", "checkpoint"} & {*wanted}:
            raise SwapFailed("an experiment serves the arms of its plan; only the catalogue may be named")
        return self._load_arms(**wanted)


class Switching:
    """Handlers of `GET` and `POST /v1/admin/experiment`."""

    def __init__(self, trial: LiveExperiment, metrics: ServiceMetrics, options: Options) -> None:
        self.trial, self.metrics, self.options = trial, metrics, options
        self.measure()

    def measure(self) -> dict[str, Any]:
        """Update the metrics of the experiment and return its state."""
        state = self.trial.state()
        self.metrics.trial_share.set(state["share"])
        for arm in self.trial.arms():
            self.metrics.arm_on.labels(arm).set(arm not in state["stopped"])
        return state

    async def experiment(self, request: Request) -> Response:
        """Return the state of the experiment."""
        return json_response(self.measure())

    async def switch(self, request: Request) -> Response:
        """Increase the share of users, or stop an arm for good; its users get the control at once."""
        if not self.options.bearers:
            raise BadRequest("only where a token is set", 403)
        body = validated(SwitchBody, parsed(request.state.body))
        try:
            made = await asyncio.to_thread(self.trial.switch, share=body.share, stop=body.stop)
        except UserError as error:
            raise BadRequest(str(error), 409) from error
        self.options.log.event("switch", **{name: value for name, value in made.items() if name != "time"})
        return json_response({"made": made, **self.measure()})
