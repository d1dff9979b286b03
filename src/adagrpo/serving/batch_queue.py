"""Micro-batching queue for an event loop, with deadlines.

A request that would miss its deadline, by measured batch times, is refused at once. After a batch of several, the next
one waits a small share of its time for as many.

Larger batches are multiples of `STEP`, since the libraries cache buffers per shape.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Lock, Thread
from typing import Any, Generic, TypeVar

InT = TypeVar("InT")
OutT = TypeVar("OutT")

STEP = 8
LEARNING = 0.3  # weight of the last batch in the average of its size
MOST_GROWTH = 2.0  # largest ratio of a batch to the average before
MARGIN = 0.8  # share of the time left, as batches may take longer than expected


class Overloaded(RuntimeError):
    """Raised when the answer would be late."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__("too many requests wait; try again later")


class BatchTimes:
    """Expected times of batches: a moving average per power of two of their size; one thread at a time may write.

    A batch takes no longer than a larger one, and one of twice the size at most twice as long.
    """

    def __init__(self) -> None:
        self._seconds: tuple[float, ...] = ()  # by power of two, rounded up; 0 if not measured

    def observe(self, size: int, seconds: float) -> None:
        """Add a measured batch."""
        power = _power(size)
        known = [*self._seconds, *[0.0] * (power + 1 - len(self._seconds))]
        bounds = [value * 2.0 ** max(0, power - other) for other, value in enumerate(known) if value]
        before = known[power] or min([seconds, *bounds])
        known[power] = average = before + LEARNING * (min(seconds, MOST_GROWTH * before) - before)
        bounded = [min(value, average * 2.0 ** max(0, other - power)) for other, value in enumerate(known)]
        self._seconds = tuple(bounded)  # atomic, for concurrent readers

    def expected(self, size: int) -> float:
        """Return expected seconds, by the nearest measured size at or below, else the smallest."""
        known = self._seconds
        if not size or not known:
            return 0.0
        for power in range(min(_power(size), len(known) - 1), -1, -1):
            if known[power]:
                return known[power]
        return next(value for value in known if value)


def _power(size: int) -> int:
    return (size - 1).bit_length()


@dataclass(slots=True, eq=False)
class _Ticket(Generic[InT, OutT]):
    value: InT
    future: asyncio.Future[OutT]
    deadline: float  # of time.monotonic
    is_abandoned: Callable[[], bool]


class BatchQueue(Generic[InT, OutT]):
    """Threads that work on submitted requests in batches."""

    def __init__(
        self,
        work: Callable[[Sequence[InT]], Sequence[OutT | Exception]],
        *,
        most: int = 64,
        waiting: int = 1024,
        threads: int = 1,
        linger: float = 0.0,  # share of the last batch's time to wait for as many requests
        begin: Callable[[], None] = lambda: None,  # called by each thread
    ) -> None:
        """Start the threads.

        Args:
            work: answers a batch, in order, with exceptions for failed requests; called concurrently.
        """
        self._work, self._most, self._may_wait, self._linger, self._begin = work, most, waiting, linger, begin
        self._waiting: deque[_Ticket[InT, OutT]] = deque()
        self._work_waiting, self._gathering, self._closed = Condition(), Lock(), False
        self._wanted = 1  # waiting requests that wake the gathering thread
        self._last, self._pause = 1, 0.0  # size of the last batch; seconds to wait for as many
        self._in_hand: dict[int, tuple[int, float]] = {}  # by thread: size of its batch, and start
        self.times = BatchTimes()
        self.observe: Callable[[int, float], None] = lambda size, seconds: None  # called with each batch
        self._counting = Lock()
        self._threads = [
            Thread(target=self._serve, args=[number], name=f"micro-batches-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests waiting or in progress."""
        return len(self._waiting) + sum(size for size, _ in self._in_hand.copy().values())

    def wait_seconds(self, more: int = 1) -> float:
        """Estimate the seconds until `more` new requests are answered; 0 if unknown."""
        # full batches before, and requests before in the last one
        before, last = divmod(len(self._waiting) + more - 1, self._most)
        expected, now, threads = self.times.expected, time.monotonic(), len(self._threads)
        left = [max(0.0, expected(size) - (now - begun)) for size, begun in self._in_hand.copy().values()]
        soonest = min(left) if len(left) == threads else 0.0
        queued = sum(left) + before * expected(self._most)
        return max(soonest, queued / threads) + expected(last + 1)

    def late(self, seconds: float, more: int = 1) -> float | None:
        """Return the seconds by which `more` requests would miss an answer in `seconds`; None: in time.

        Up to half a batch may always wait.
        """
        waits = len(self._waiting)
        if waits + more > self._may_wait:
            return max(0.0, self.wait_seconds(more) - seconds)
        if waits < self._most // 2 or not self.waiting:
            return None
        expected = self.wait_seconds(more)
        return expected - seconds if expected > MARGIN * seconds else None

    def check(self, seconds: float, more: int = 1) -> None:
        """Raise `Overloaded` if `late` returns a delay."""
        late = self.late(seconds, more)
        if late is not None:
            raise Overloaded(late)

    def submit(
        self, value: InT, deadline: float = math.inf, is_abandoned: Callable[[], bool] = lambda: False
    ) -> asyncio.Future[OutT]:
        """Submit a request from the event loop; the future gets its answer. `Overloaded` if the queue is full.

        Args:
            deadline: `time.monotonic` after which the future raises `Overloaded` unless work has begun.
            is_abandoned: whether the client has disconnected; cancels the future.
        """
        if len(self._waiting) >= self._may_wait:
            raise Overloaded(self.wait_seconds())
        ticket = _Ticket(value, asyncio.get_running_loop().create_future(), deadline, is_abandoned)
        with self._work_waiting:
            if self._closed:
                raise Overloaded(1)
            self._waiting.append(ticket)
            if len(self._waiting) >= self._wanted:
                self._work_waiting.notify()
        return ticket.future

    def close(self) -> None:
        """Finish waiting requests and stop."""
        with self._work_waiting:
            self._closed = True
            self._work_waiting.notify()
        for thread in self._threads:
            thread.join()

    def _serve(self, thread: int) -> None:
        self._begin()
        while self._serve_next(thread):  # keeps no reference: a request may hold a replaced model
            pass

    def _serve_next(self, thread: int) -> bool:
        with self._gathering, self._work_waiting:  # one thread at a time gathers
            while not self._waiting and not self._closed:
                self._work_waiting.wait()
            until = time.monotonic() + self._pause
            self._wanted = self._last
            while len(self._waiting) < self._wanted and not self._closed and (left := until - time.monotonic()) > 0:
                self._work_waiting.wait(left)
            self._wanted, self._last, self._pause = 1, 1, 0.0
            if not self._waiting:
                return False
            now, count = time.monotonic(), len(self._waiting)
            free = len(self._threads) - len(self._in_hand)  # this thread included
            share = -(-count // free) if count > 2 * STEP else count
            room = min(self._most, max(share - share % STEP, STEP - 1))
            batch: list[_Ticket[InT, OutT]] = []
            refused: list[_Ticket[InT, OutT]] = []
            while self._waiting and len(batch) < room:
                ticket = self._waiting.popleft()
                late = ticket.deadline < now or ticket.future.cancelled() or ticket.is_abandoned()
                (refused if late else batch).append(ticket)
            if batch:
                self._in_hand[thread] = len(batch), now
        for ticket in refused:
            _call_soon(ticket.future, self._refuse, ticket)
        if batch:
            self._answer(batch, thread)
        return True

    def _answer(self, batch: list[_Ticket[InT, OutT]], thread: int) -> None:
        started = time.monotonic()
        results = _results(lambda: self._work([ticket.value for ticket in batch]), len(batch))
        seconds = time.monotonic() - started
        with self._counting:
            self.times.observe(len(batch), seconds)
            self.observe(len(batch), seconds)
        self._last, self._pause = len(batch), self._linger * seconds if len(batch) > 1 else 0.0
        del self._in_hand[thread]
        _call_soon(batch[0].future, _deliver, [ticket.future for ticket in batch], results)

    def _refuse(self, ticket: _Ticket[InT, OutT]) -> None:
        if not ticket.future.done():
            if ticket.is_abandoned():
                ticket.future.cancel()
            else:
                ticket.future.set_exception(Overloaded(self.wait_seconds()))


async def in_daemon_thread(work: Callable[..., OutT], *arguments: Any, **named: Any) -> OutT:
    """Return or raise what `work` does, in a thread for which process exit does not wait."""
    future: asyncio.Future[OutT] = asyncio.get_running_loop().create_future()

    def carry_out() -> None:
        _call_soon(future, _deliver, [future], _results(lambda: [work(*arguments, **named)], 1))

    Thread(target=carry_out, name="in-daemon-thread", daemon=True).start()
    return await future


def _results(work: Callable[[], Sequence[OutT | Exception]], count: int) -> Sequence[OutT | Exception]:
    try:
        return work()
    except BaseException as error:  # SystemExit would end the thread with its futures pending
        return [error if isinstance(error, Exception) else RuntimeError(type(error).__name__)] * count


def _call_soon(future: asyncio.Future[OutT], call: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed
        future.get_loop().call_soon_threadsafe(call, *arguments)


def _deliver(futures: Sequence[asyncio.Future[OutT]], results: Sequence[OutT | Exception]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
