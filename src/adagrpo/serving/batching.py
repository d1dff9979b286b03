"""Micro-batching: requests that wait while others are worked on are worked on together next.

Nothing waits for company: a request that finds the worker idle starts at once, and the batch grows only with the load.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Generic, NamedTuple, TypeVar

__all__ = ["MicroBatcher", "Overloaded"]

InT = TypeVar("InT")
OutT = TypeVar("OutT")


class Overloaded(RuntimeError):
    """As many requests wait as may, or none may any more."""


class _Request(NamedTuple, Generic[InT, OutT]):
    value: InT
    future: Future[OutT]


class MicroBatcher(Generic[InT, OutT]):
    """One thread that works on what waits, batch by batch."""

    def __init__(self, work: Callable[[Sequence[InT]], Sequence[OutT]], *, most: int = 64, waiting: int = 1024) -> None:
        """Start the thread.

        Args:
            work: answers a batch, in its order.
            most: requests of a batch.
            waiting: requests that may wait.
        """
        self._work, self._most = work, most
        self._requests: queue.Queue[_Request[InT, OutT] | None] = queue.Queue(waiting)
        self._closed, self._entry = False, Lock()
        self._thread = Thread(target=self._serve, name="micro-batches", daemon=True)
        self._thread.start()

    def submit(self, value: InT) -> Future[OutT]:
        """Hand in a request; the answer, or what `work` raised for its batch, comes by the future.

        Raises:
            Overloaded: too many wait, or it is closed.
        """
        request = _Request(value, Future[OutT]())
        with self._entry:  # behind the end nobody would answer it
            if self._closed:
                raise Overloaded("nothing is taken any more")
            try:
                self._requests.put_nowait(request)
            except queue.Full as error:
                raise Overloaded(f"{self._requests.maxsize} requests wait already") from error
        return request.future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._entry:
            self._closed = True
        self._requests.put(None)
        self._thread.join()

    def _serve(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._next()
            batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                results = self._work([request.value for request in batch])
            except Exception as error:
                for request in batch:
                    request.future.set_exception(error)
            else:
                for request, result in zip(batch, results, strict=True):
                    request.future.set_result(result)

    def _next(self) -> tuple[list[_Request[InT, OutT]], bool]:
        """Wait for a request and take what else is there; and whether it was the end."""
        batch: list[_Request[InT, OutT]] = []
        taken = self._requests.get()
        while taken is not None:
            batch.append(taken)
            if len(batch) == self._most:
                return batch, False
            try:
                taken = self._requests.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True
