"""Where requests wait: micro-batches as in `adagrpo.serving.batching`, for an event loop, and with deadlines.

A request is turned away at once where the line will not be through by its deadline, by the times that batches of each
size were measured to take. Work is not begun for a client that has left or whose deadline has passed.

Larger batches are cut to a multiple of `STEP`. The libraries below keep what they made for each shape of a product, so
batches of every size would fill the memory: 360 MB within 80 batches of random sizes, 30 MB at one size. The price is
throughput: 32 clients of Beauty get 444 lists a second and not 482 from the compact policy, 342 and not 380 from the
hybrid one (`python -m benchmarks --only serving`, two cores, one run each).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Generic, TypeVar

from adagrpo.serving.batching import Overloaded

__all__ = ["TooLate", "WaitingLine"]

InT = TypeVar("InT")
OutT = TypeVar("OutT")

STEP = 8
LEARNING = 0.3  # weight of the last batch in the average of its size


class TooLate(Overloaded):
    """An answer would come too late."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__("too many requests wait; try again later")


@dataclass(slots=True, eq=False)
class _Ticket(Generic[InT, OutT]):
    value: InT
    future: asyncio.Future[OutT]
    deadline: float  # of time.monotonic
    gone: Callable[[], bool]


class WaitingLine(Generic[InT, OutT]):
    """One thread that works on what waits, batch by batch, for the event loop that submits."""

    def __init__(self, work: Callable[[Sequence[InT]], Sequence[OutT]], *, most: int = 64, waiting: int = 1024) -> None:
        """Start the thread.

        Args:
            work: answers a batch, in its order.
            most: requests of a batch.
            waiting: requests that may wait.
        """
        self._work, self._most, self._may_wait = work, most, waiting
        self._waiting: deque[_Ticket[InT, OutT]] = deque()
        self._there_is_work, self._closed = Condition(), False
        self._in_hand = 0
        self._seconds: dict[int, float] = {}  # that a batch takes, by the power of two that its size is at most
        self.given_up = 0  # requests that nobody waited for any more
        self.observe: Callable[[int, float], None] = lambda size, seconds: None  # called with each batch
        self._thread = Thread(target=self._serve, name="micro-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait or are worked on."""
        return len(self._waiting) + self._in_hand

    def wait_seconds(self, more: int = 1) -> float:
        """How long `more` requests that come now would take to be answered, as measured; 0 before anything was."""
        whole, rest = divmod(len(self._waiting) + more, self._most)
        return self._expected(self._in_hand) + whole * self._expected(self._most) + self._expected(rest)

    def _expected(self, size: int) -> float:
        """Seconds that a batch takes; of a size that was not measured those of the next smaller one, or the least."""
        if not size or not self._seconds:
            return 0.0
        measured = sorted(self._seconds)
        known = [power for power in measured if power <= _power(size)]
        return self._seconds[known[-1] if known else measured[0]]

    def check(self, seconds: float, more: int = 1) -> None:
        """Whether `more` requests can be answered within `seconds`.

        Up to half a batch may always wait: with less the worker would be slower, and all would wait the longer.

        Raises:
            TooLate: they cannot.
        """
        expected, waits = self.wait_seconds(more), len(self._waiting)
        late = expected > seconds and self.waiting and waits >= self._most // 2
        if waits + more > self._may_wait or late:
            raise TooLate(expected - seconds)

    def submit(
        self, value: InT, deadline: float = math.inf, gone: Callable[[], bool] = lambda: False
    ) -> asyncio.Future[OutT]:
        """Hand in a request from the event loop; its answer, or what `work` raised for its batch, comes by the future.

        Args:
            value: the request.
            deadline: of `time.monotonic`; work on it does not begin later, and the future then raises `TooLate`.
            gone: whether nobody waits for the answer any more; the future is then cancelled.

        Raises:
            TooLate: too many wait.
        """
        if len(self._waiting) >= self._may_wait:
            raise TooLate(self.wait_seconds())
        ticket = _Ticket(value, asyncio.get_running_loop().create_future(), deadline, gone)
        with self._there_is_work:
            if self._closed:
                raise TooLate(1)
            self._waiting.append(ticket)
            self._there_is_work.notify()
        return ticket.future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._there_is_work:
            self._closed = True
            self._there_is_work.notify()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._there_is_work:
                while not self._waiting and not self._closed:
                    self._there_is_work.wait()
                if not self._waiting:
                    return
                batch, left = self._next()
            for ticket in left:
                _settle(ticket.future, self._leave, ticket)
            if batch:
                self._answer(batch)

    def _next(self) -> tuple[list[_Ticket[InT, OutT]], list[_Ticket[InT, OutT]]]:
        """What is worked on next, and what nobody waits for."""
        now = time.monotonic()
        batch: list[_Ticket[InT, OutT]] = []
        left: list[_Ticket[InT, OutT]] = []
        room = min(self._most, max(len(self._waiting) - len(self._waiting) % STEP, STEP - 1))
        while self._waiting and len(batch) < room:
            ticket = self._waiting.popleft()
            late = ticket.deadline < now or ticket.future.cancelled() or ticket.gone()
            (left if late else batch).append(ticket)
        self._in_hand = len(batch)
        return batch, left

    def _answer(self, batch: list[_Ticket[InT, OutT]]) -> None:
        started = time.monotonic()
        try:
            results: Sequence[OutT | Exception] = self._work([ticket.value for ticket in batch])
        except BaseException as error:  # SystemExit would end this thread, and nothing would be answered any more
            raised = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            results = [raised] * len(batch)
        seconds = time.monotonic() - started
        power = _power(len(batch))
        before = self._seconds.get(power, seconds)
        self._seconds = self._seconds | {power: before + LEARNING * (seconds - before)}  # read by the loop meanwhile
        self.observe(len(batch), seconds)
        self._in_hand = 0
        _settle(batch[0].future, _deliver, batch, results)

    def _leave(self, ticket: _Ticket[InT, OutT]) -> None:
        self.given_up += 1
        if not ticket.future.done():
            if ticket.gone():
                ticket.future.cancel()
            else:
                ticket.future.set_exception(TooLate(self.wait_seconds()))


def _power(size: int) -> int:
    return (size - 1).bit_length()


def _settle(future: asyncio.Future[OutT], call: Callable[..., None], *arguments: object) -> None:
    """Have the event loop of a future make a call, if there is one still."""
    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)


def _deliver(batch: Sequence[_Ticket[InT, OutT]], results: Sequence[OutT | Exception]) -> None:
    for ticket, result in zip(batch, results, strict=True):
        if ticket.future.done():
            continue
        if isinstance(result, Exception):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)
