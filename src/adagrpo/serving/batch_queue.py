"""Micro-batching queue for an event loop, with deadlines.

A request that would miss its deadline, by measured batch times, is refused at once. After a batch of several, the next
one waits a small share of its time for as many.

Larger batches are multiples of `STEP`, since the libraries cache buffers per shape: 360 MB for 80 random sizes, 30 MB
for one.
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
from typing import Generic, TypeVar

from adagrpo.serving.batch_times import BatchTimes

InT = TypeVar("InT")
OutT = TypeVar("OutT")

STEP = 8
MARGIN = 0.8  # share of the time left, as batches may take longer than expected


class Overloaded(RuntimeError):
    """Raised when the answer would be late."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__("too many requests wait; try again later")


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
        linger: float = 0.0,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the threads.

        Args:
            work: answers a batch, in order, with exceptions for failed requests; called concurrently.
            most: largest batch.
            linger: share of the last batch's time to wait for as many requests.
            begin: called by each thread.
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
        before, last = divmod(
            len(self._waiting) + more - 1, self._most
        )  # full batches before, and requests before in the last one
        expected, now, threads = self.times.expected, time.monotonic(), len(self._threads)
        left = [max(0.0, expected(size) - (now - begun)) for size, begun in self._in_hand.copy().values()]
        soonest = min(left) if len(left) == threads else 0.0
        queued = sum(left) + before * expected(self._most)
        return max(soonest, queued / threads) + expected(last + 1)

    def late(self, seconds: float, more: int = 1) -> float | None:
        """Return by how many seconds `more` requests would miss an answer in `seconds`; None: in time.

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
        """Submit a request from the event loop; the future gets its answer.

        Args:
            deadline: `time.monotonic` after which the future raises `Overloaded` unless work has begun.
            is_abandoned: whether the client has disconnected; cancels the future.

        Raises:
            Overloaded: the queue is full.
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
            self._gather()
            if not self._waiting:
                return False
            batch, left = self._next(thread)
        for ticket in left:
            _settle(ticket.future, self._leave, ticket)
        if batch:
            self._answer(batch, thread)
        return True

    def _gather(self) -> None:
        while not self._waiting and not self._closed:
            self._work_waiting.wait()
        until = time.monotonic() + self._pause
        self._wanted = self._last
        while len(self._waiting) < self._wanted and not self._closed and (left := until - time.monotonic()) > 0:
            self._work_waiting.wait(left)
        self._wanted, self._last, self._pause = 1, 1, 0.0

    def _next(self, thread: int) -> tuple[list[_Ticket[InT, OutT]], list[_Ticket[InT, OutT]]]:
        now = time.monotonic()
        batch: list[_Ticket[InT, OutT]] = []
        left: list[_Ticket[InT, OutT]] = []
        there = len(self._waiting)
        free = len(self._threads) - len(self._in_hand)  # this thread included
        share = -(-there // free) if there > 2 * STEP else there
        room = min(self._most, max(share - share % STEP, STEP - 1))
        while self._waiting and len(batch) < room:
            ticket = self._waiting.popleft()
            late = ticket.deadline < now or ticket.future.cancelled() or ticket.is_abandoned()
            (left if late else batch).append(ticket)
        if batch:
            self._in_hand[thread] = len(batch), now
        return batch, left

    def _answer(self, batch: list[_Ticket[InT, OutT]], thread: int) -> None:
        started = time.monotonic()
        try:
            results: Sequence[OutT | Exception] = self._work([ticket.value for ticket in batch])
        except BaseException as error:  # SystemExit would end this thread
            raised = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            results = [raised] * len(batch)
        seconds = time.monotonic() - started
        with self._counting:
            self.times.observe(len(batch), seconds)
            self.observe(len(batch), seconds)
        self._last, self._pause = len(batch), self._linger * seconds if len(batch) > 1 else 0.0
        del self._in_hand[thread]
        _settle(batch[0].future, _deliver, batch, results)

    def _leave(self, ticket: _Ticket[InT, OutT]) -> None:
        if not ticket.future.done():
            if ticket.is_abandoned():
                ticket.future.cancel()
            else:
                ticket.future.set_exception(Overloaded(self.wait_seconds()))


def _settle(future: asyncio.Future[OutT], call: Callable[..., None], *arguments: object) -> None:
    with suppress(RuntimeError):  # it is closed
        future.get_loop().call_soon_threadsafe(call, *arguments)


def _deliver(batch: Sequence[_Ticket[InT, OutT]], results: Sequence[OutT | Exception]) -> None:
    for ticket, result in zip(batch, results, strict=True):
        if ticket.future.done():
            continue
        if isinstance(result, Exception):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)
