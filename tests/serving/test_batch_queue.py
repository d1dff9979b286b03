from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Sequence

import pytest

from adagrpo.serving.batch_queue import BatchQueue, Overloaded


def squares(values: Sequence[int]) -> list[int]:
    time.sleep(0.01)
    if -1 in values:
        raise ValueError("no -1")
    return [value * value for value in values]


def test_answers_come_in_order_and_a_failure_is_its_batch_alone() -> None:
    async def ask() -> None:
        queue = BatchQueue[int, int](squares, most=4)
        assert await queue.submit(7) == 49  # alone
        futures = [queue.submit(value) for value in (1, 2, 3, 4, -1, 6)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert results[0] == 1 and {type(result) for result in results[4:]} <= {int, ValueError}
        assert isinstance(results[4], ValueError)
        assert await queue.submit(5) == 25
        queue.close()
        with pytest.raises(Overloaded):
            queue.submit(1)

    asyncio.run(ask())


def test_an_idle_line_holds_no_request() -> None:
    """A request holds the model that it was read with, which may be exchanged meanwhile."""

    class Held:
        pass

    async def ask() -> None:
        queue = BatchQueue[Held, int](lambda values: [7 for _ in values])
        value = Held()
        gone = weakref.ref(value)
        assert await queue.submit(value) == 7
        del value
        until = time.monotonic() + 5
        while gone() is not None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert gone() is None
        queue.close()

    asyncio.run(ask())


def test_work_that_wants_to_end_the_process_fails_alone() -> None:
    """A function of a user's that calls `sys.exit` would end the one thread that answers."""

    def work(values: Sequence[int]) -> Sequence[int]:
        if -1 in values:
            raise SystemExit(3)
        return values

    async def ask() -> None:
        queue = BatchQueue[int, int](work)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await asyncio.wait_for(queue.submit(-1), 5)
        assert await asyncio.wait_for(queue.submit(5), 5) == 5
        queue.close()

    asyncio.run(ask())


def test_the_wait_is_what_batches_of_that_size_took() -> None:
    """The time of one request alone says nothing of how long 64 of them take together."""

    async def ask() -> None:
        seconds = {1: 0.04, 4: 0.08}
        queue = BatchQueue[int, int](lambda values: [time.sleep(seconds[len(values)])] * len(values), most=4)  # type: ignore[list-item]
        assert queue.wait_seconds() == 0
        await queue.submit(1)
        alone = queue.times.expected(1)
        assert queue.wait_seconds(4) == alone >= 0.04  # not four times as long
        with queue._work_waiting:  # so that all of them are there before the first is taken
            futures = [queue.submit(value) for value in range(4)]
        await asyncio.gather(*futures)
        await asyncio.sleep(0.02)
        together = queue.times.expected(4)
        assert queue.wait_seconds(4) == together >= 0.05
        assert queue.wait_seconds(9) == 2 * together + alone
        queue.close()

    asyncio.run(ask())


def test_what_would_come_too_late_is_refused_and_what_came_too_late_is_not_worked_on() -> None:
    async def ask() -> None:
        go, seen = threading.Event(), list[int]()

        def work(values: Sequence[int]) -> Sequence[int]:
            seen.extend(values)
            go.wait(10)
            return values

        queue = BatchQueue[int, int](work, most=1, waiting=3)
        queue.times.observe(1, 1.0)
        queue.check(0.5)  # an idle worker takes anything
        first = queue.submit(0)
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded) as error:
            queue.check(1.5)
        assert error.value.retry_after == 1
        queue.check(2.6)
        late = queue.submit(1, time.monotonic() + 0.01)
        gone = queue.submit(2, is_abandoned=lambda: True)
        kept = queue.submit(3)
        with pytest.raises(Overloaded):
            queue.submit(4)  # three wait
        await asyncio.sleep(0.05)
        go.set()
        assert await first == 0 and await kept == 3
        with pytest.raises(Overloaded):
            await late
        assert gone.cancelled() and seen == [0, 3]
        queue.close()

    asyncio.run(ask())


def test_threads_work_side_by_side_and_share_what_waits() -> None:
    async def ask() -> None:
        both, sizes = threading.Barrier(2), list[int]()

        def work(values: Sequence[int]) -> Sequence[int]:
            sizes.append(len(values))
            both.wait(10)  # breaks where one batch alone is worked on
            return values

        queue = BatchQueue[int, int](work, most=64, threads=2)
        with queue._work_waiting:
            futures = [queue.submit(value) for value in range(48)]
        assert await asyncio.gather(*futures) == list(range(48))
        assert sizes == [24, 24]
        queue.close()
        assert not any(thread.is_alive() for thread in queue._threads)

    asyncio.run(ask())


def test_after_a_batch_the_next_one_waits_for_as_many_and_one_alone_waits_for_nobody() -> None:
    async def ask() -> None:
        sizes = list[int]()

        def work(values: Sequence[int]) -> Sequence[int]:
            sizes.append(len(values))
            time.sleep(0.02)
            return values

        queue = BatchQueue[int, int](work, linger=100.0)
        with queue._work_waiting:
            futures = [queue.submit(value) for value in range(6)]
        await asyncio.gather(*futures)
        again = []
        for value in range(6):
            again.append(queue.submit(value))
            await asyncio.sleep(0.002)
        await asyncio.wait_for(asyncio.gather(*again), 1.5)  # not the two seconds that it would wait at most
        assert sizes == [6, 6]
        queue._pause = 0.0
        await queue.submit(1)
        assert (queue._last, queue._pause) == (1, 0.0)
        queue.close()

    asyncio.run(ask())
