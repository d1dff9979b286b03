"""Graceful handling of SIGTERM (raised as `Terminated`) and SIGINT (`KeyboardInterrupt`).

During imports SIGINT exits the process, since an exception could be mistaken for a failed import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
    """The process received SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` in the main thread on SIGTERM."""
    with _handled({signal.SIGTERM: lambda number, frame: _raise(number)}):
        yield


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Exit with one line and status 130 on SIGINT."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.stderr.write("adagrpo: interrupted; the same command continues\n")
        sys.stderr.flush()
        os._exit(128 + number)

    with _handled({signal.SIGINT: leave}):
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Defer the first signal; raise a second one at once. Yields a function that raises for a deferred signal."""
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            _raise(number)
        received.append(number)

    def ask() -> None:
        if received:
            _raise(received[0])

    with _handled(dict.fromkeys(SIGNALS, handler)):
        yield ask


@contextmanager
def _handled(handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
