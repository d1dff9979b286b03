"""An end that was asked for from outside: what is in hand is finished and kept, then the command ends.

SIGTERM raises `Terminated` wherever a run is at work, and SIGINT `KeyboardInterrupt`. A fit asks for both to be held
back while a step is in hand, so that its state is whole when it is saved; a second signal does not wait.

While modules are imported nothing is in hand, and an exception in the middle may be taken for a failed import: there
SIGINT ends the process at once.
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
    """The process was told to end, by SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise `Terminated` in the main thread while the block lasts."""
    with _handled({signal.SIGTERM: lambda number, frame: _raise(number)}):
        yield


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Have SIGINT end the process with one line and status 130 while the block lasts."""
    with _handled({signal.SIGINT: _leave}):
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Hold the first signal back until it is asked for; a second one is raised at once.

    Yields:
        Raises what the signal stands for, if one has come.
    """
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
    """Install handlers, in the main thread, which alone may, and put back those that were there."""
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


def _leave(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("adagrpo: interrupted; the same command continues\n")
    sys.stderr.flush()
    os._exit(128 + number)
