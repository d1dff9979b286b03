"""Rows of the exposure log, made of answers before they are sent, and rows of feedback.

Answers that wait at the same time are put on record together, by a thread of its own, so that neither the policy nor
the event loop waits for a disk; so is feedback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from adagrpo.exposures.exposure_log import FAILED, Exposure, ExposureSink, Feedback, Outcome, SinkFailed
from adagrpo.lists.query import Recommendations
from adagrpo.serving.batch_queue import BatchQueue
from adagrpo.serving.model_manager import Answered, Asked
from adagrpo.serving.schemas import FeedbackEvent

RowT = TypeVar("RowT", Exposure, Feedback)
T = TypeVar("T")
AT_ONCE = 1000  # rows of a transaction, for which the others wait
SLOW, REST = 0.5, 1.0  # seconds that a failure took, and for which nothing is tried after one that took longer


class Asker(NamedTuple):
    """The user and history of a request as the log may hold them: keyed hashes."""

    user: str | None  # None where the request names no user
    key: str  # fingerprint of the key
    history: str  # with what else the request said of its list


def exposure(request_id: str, asker: Asker, asked: Asked, answer: Answered, ms: float) -> Exposure:
    """The row of one answer, as it is shown; `ms` since the request was read."""
    shown, query, trial, versions = answer.list, asked.query, asked.trial, asked.versions
    made_by, size = versions["arm"], len(shown.items)
    drawn = shown.log_propensities is not None and shown.log_inclusions is not None
    return Exposure(
        request_id=request_id,
        time=time.time(),
        slate=tuple(shown.items),
        arm=made_by if trial is None else trial.arm,
        model_version=versions["model"],
        catalog_version=versions["catalog"],
        user_hash=asker.user,
        key_version=asker.key,
        history_hash=asker.history,
        experiment=None if trial is None else trial.experiment,
        salt_version=None if trial is None else trial.plan,
        arm_version=None if trial is None else made_by,
        deal=None if trial is None else trial.deal,
        teams=answer.teams,
        narrowed=asked.narrowed,
        degraded=answer.degraded,
        source=shown.source,
        temperature=query.temperature if drawn else None,
        seed=query.seed if drawn else None,
        log_propensities=tuple((shown.log_propensities or ())[:size]) if drawn else None,
        log_inclusions=tuple((shown.log_inclusions or ())[:size]) if drawn else None,
        latency_ms=round(ms, 3),
    )


def failure(request_id: str, asker: Asker, asked: Asked, ms: float) -> Exposure:
    """The row of a request that got no list; it does not take the request's id, so that a retry is answered."""
    nothing = Answered(Recommendations([], [], []), False)
    row = exposure(f"{request_id}!{FAILED}", asker, asked, nothing, ms)
    return replace(row, source=FAILED)


class ExposureRows:
    """A sink, as the event loop sees it."""

    def __init__(self, sink: ExposureSink, failed: Callable[[SinkFailed], None] = lambda error: None) -> None:
        """Start the threads that write; `failed` hears of each failure: an operator must learn why 503 is answered."""
        self._sink, self._failed, self._rest_until = sink, failed, 0.0
        self._failing: dict[str, str] = {}

        def feedback(rows: list[Feedback], _: list[int]) -> Sequence[Outcome]:
            return sink.feedback(rows)

        self._answers = BatchQueue[Sequence[Exposure], Sequence[Exposure]](
            partial(self._put, "lists", sink.write), most=256
        )
        self._events = BatchQueue[Sequence[Feedback], Sequence[Outcome]](
            partial(self._put, "feedback", feedback), most=256
        )

    @property
    def failing(self) -> str | None:
        """What could not be written the last time, and why; None where all could."""
        return next((f"{what} cannot be written: {why}" for what, why in self._failing.copy().items()), None)

    async def write(self, rows: Sequence[Exposure]) -> Sequence[Exposure]:
        """Put rows on record; see `ExposureSink.write`.

        Raises:
            SinkFailed: nothing of them may be sent.
        """
        return await self._answers.submit(rows)

    async def feedback(self, rows: Sequence[Feedback]) -> Sequence[Outcome]:
        """Put feedback on record; see `ExposureSink.feedback`.

        Raises:
            SinkFailed: nothing of it is.
        """
        return await self._events.submit(rows)

    def close(self) -> None:
        """Finish what was begun."""
        self._answers.close()
        self._events.close()
        self._sink.close()

    def _put(
        self, what: str, put: Callable[[list[RowT], list[int]], Sequence[T]], calls: Sequence[Sequence[RowT]]
    ) -> list[Sequence[T] | Exception]:
        """Put the rows of several calls on record; what came of each, by call."""
        results: list[Sequence[T] | Exception] = []
        while len(results) < len(calls):
            some: list[Sequence[RowT]] = [calls[len(results)]]
            count = len(some[0])
            for rows in calls[len(results) + 1 :]:
                count += len(rows)
                if count > AT_ONCE:
                    break
                some.append(rows)
            try:
                flat = [row for rows in some for row in rows]
                found = iter(self._try(what, partial(put, flat, [*map(len, some)])))
                results += [[next(found) for _ in rows] for rows in some]
            except SinkFailed as error:
                results += [error] * len(some)
        return results

    def _try(self, what: str, work: Callable[[], T]) -> T:
        """Return what `work` does. While a sink is away, rows that come right after a slow failure fail at once."""
        started = time.monotonic()
        if started < self._rest_until:
            raise SinkFailed("could not be written a moment ago")
        try:
            done = work()
        except SinkFailed as error:
            now = time.monotonic()
            if now - started > SLOW:
                self._rest_until = now + REST
            self._failing[what] = str(error.__cause__ or error)  # what the disk said, without the folder
            self._failed(error)
            raise
        self._failing.pop(what, None)
        return done


def feedback_row(event: FeedbackEvent) -> Feedback:
    """The row of one event; what names no time has happened now."""
    given: dict[str, Any] = {} if event.value is None else {"value": event.value}
    moment = time.time() if event.time is None else event.time
    return Feedback(request_id=event.request_id, item=event.item_id, kind=event.kind, time=moment, **given)
