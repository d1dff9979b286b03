"""Rows of the exposure log from answers and feedback, written in batches by other threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from adagrpo.exposures.exposure_log import Exposure, ExposureSink, Feedback, Outcome, SinkFailed
from adagrpo.serving.batch_queue import BatchQueue
from adagrpo.serving.model_manager import Answered, Asked

RowT = TypeVar("RowT", Exposure, Feedback)
T = TypeVar("T")
AT_ONCE = 1000  # rows per transaction
SLOW, REST = 0.5, 1.0  # a failure that took longer than SLOW seconds pauses writes for REST seconds


class RequestHashes(NamedTuple):
    """User and history of a request, as keyed hashes."""

    user: str | None  # None: no user in the request
    key: str  # fingerprint of the key
    history: str  # with the other fields of the request


def exposure(request_id: str, hashes: RequestHashes, asked: Asked, answer: Answered, ms: float) -> Exposure:
    """Return the row of an answer as shown; `ms` since the request was read."""
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
        user_hash=hashes.user,
        key_version=hashes.key,
        history_hash=hashes.history,
        experiment=None if trial is None else trial.experiment,
        salt_version=None if trial is None else trial.plan,
        arm_version=None if trial is None else made_by,
        deal=None if trial is None else trial.reason,
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


class ExposureRows:
    """Asynchronous interface to a sink."""

    def __init__(self, sink: ExposureSink, failed: Callable[[SinkFailed], None] = lambda error: None) -> None:
        """Start the threads; `failed` is called with each failure."""
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
        """What could not be written last time, and why, or None."""
        return next((f"{what} cannot be written: {why}" for what, why in self._failing.copy().items()), None)

    async def write(self, rows: Sequence[Exposure]) -> Sequence[Exposure]:
        """See `ExposureSink.write`; after `SinkFailed`, none of the answers may be sent."""
        return await self._answers.submit(rows)

    async def feedback(self, rows: Sequence[Feedback]) -> Sequence[Outcome]:
        """See `ExposureSink.feedback`; after `SinkFailed`, none is logged."""
        return await self._events.submit(rows)

    def close(self) -> None:
        """Finish pending writes and close the sink."""
        self._answers.close()
        self._events.close()
        self._sink.close()

    def _put(
        self, what: str, put: Callable[[list[RowT], list[int]], Sequence[T]], calls: Sequence[Sequence[RowT]]
    ) -> list[Sequence[T] | Exception]:
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
        """Call `work`; shortly after a slow failure, fail at once."""
        started = time.monotonic()
        if started < self._rest_until:
            raise SinkFailed("could not be written a moment ago")
        try:
            done = work()
        except SinkFailed as error:
            now = time.monotonic()
            if now - started > SLOW:
                self._rest_until = now + REST
            self._failing[what] = str(error.__cause__ or error)  # the disk's error, without the folder
            self._failed(error)
            raise
        self._failing.pop(what, None)
        return done
