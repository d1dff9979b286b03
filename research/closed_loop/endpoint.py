"""The real service of a market, on a port of this machine: one application an arm, all writing into one exposure log.

What is served is exchanged as a reload exchanges it. The hour of a row is that of the simulated day, which the request
id says: a market that is played again writes the same rows.
"""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adagrpo.exposures.exposure_log import Exposure, Feedback, Outcome
from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.lists.exploration import Exploration
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import Limits, Options
from adagrpo.serving.schemas import LONGEST_BATCH
from research.closed_loop.beginnings import DAY, HASH

__all__ = ["Endpoint", "SimulatedDays", "moment_of"]

LIMITS = Limits(deadline_seconds=600.0, grace_seconds=0.0, drain_seconds=1.0)
EVENTS = 1000  # of one body of feedback


def moment_of(request_id: str, first_day: int) -> float:
    """Seconds since the first day of the world, of a request of a simulated day: `d<day>-u<user>`.

    Example:
        >>> moment_of("d2-u00017", 10)
        1036817.0
    """
    day, _, user = request_id.partition("-")
    return float((first_day + int(day[1:])) * DAY + int(user[1:]))


class SimulatedDays:
    """An exposure log whose rows are of simulated days; an `ExposureSink` that several applications may share."""

    def __init__(self, log: LocalExposureLog, arm: str, experiment: str | None, first_day: int) -> None:
        self._log, self._arm, self._experiment, self._first_day = log, arm, experiment, first_day

    def write(self, rows: Sequence[Exposure], together: Sequence[int] | None = None) -> list[Exposure]:
        """See `ExposureSink.write`."""
        return self._log.write([self._dated(row) for row in rows], together)

    def feedback(self, rows: Sequence[Feedback]) -> list[Outcome]:
        """See `ExposureSink.feedback`."""
        return self._log.feedback(rows)

    def close(self) -> None:
        """Nothing: the log belongs to the market."""

    def _dated(self, row: Exposure) -> Exposure:
        moment = moment_of(row.request_id, self._first_day)
        named = self._experiment  # also for the hash of a plan, of which there is none
        return replace(row, time=moment, arm=self._arm, experiment=named, salt_version=named, latency_ms=None)


class Endpoint:
    """An application that answers on a port, and a client of it."""

    def __init__(self, sink: SimulatedDays, serving: Serving, explore: Exploration | None) -> None:
        from adagrpo.serving.app import Application
        from adagrpo.serving.draining import Server, listen

        self._next = serving
        self._manager = ModelManager(serving, lambda: self._next)
        options = Options(LIMITS, user_hash=HASH, exposures=sink, explore=explore)
        self._listener = listen("127.0.0.1", 0)
        self._server = Server(Application(self._manager, options))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()
        self._client = http.client.HTTPConnection("127.0.0.1", self._listener.getsockname()[1], timeout=600)

    def serve(self, serving: Serving) -> None:
        """Serve another one from now on."""
        self._client.close()  # learning takes longer than the service keeps an idle connection; it opens again
        self._next = serving
        self._manager.swap()

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The answers to bodies of `POST /v1/recommend`, in their order."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(requests), LONGEST_BATCH):
            body = {"requests": list(requests[start : start + LONGEST_BATCH])}
            answers += self._post("/v1/recommend", body)["responses"]
        return answers

    def tell(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Send feedback."""
        for start in range(0, len(events), EVENTS):
            self._post("/v1/feedback", {"events": list(events[start : start + EVENTS])})

    def close(self) -> None:
        """End the service."""
        self._client.close()
        self._server.end()
        self._thread.join()
        self._listener.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self._client.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._client.getresponse()
        content: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"the service of the market answered {path} with {answer.status}: {content}")
        return content
