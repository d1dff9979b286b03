"""Several processes that answer at one address: they share its socket, and one that dies is replaced.

The first process answers nothing. It hands signals on: SIGTERM and SIGINT end all of them, SIGHUP has all of them load
again what they serve. Where the system can (Linux), a worker is told to end when the first process is gone, however
that ended: it would keep the address from whoever is started in its place.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from adagrpo.errors import ServiceError, UserError

__all__ = ["run_workers"]

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHORTEST_LIFE = 5.0  # seconds; a worker that dies sooner is replaced no sooner


def run_workers(
    count: int,
    listener: socket.socket,
    work: Callable[[Callable[[dict[str, Any]], None]], None],
    ready: Callable[[dict[str, Any]], None],
    died: Callable[[int], None] = lambda process: None,
    hold_off: Callable[[], None] = lambda: None,
    failed: Callable[[Exception], None] = lambda error: None,
) -> None:
    """Answer with `count` processes until told to end.

    Args:
        count: of processes.
        listener: what they share.
        work: what each of them does; it calls what it is given once it answers, with what it serves. SIGHUP is blocked
            when it begins, and it unblocks it once it can load again what it serves.
        ready: called once all of them answer, with what the first serves.
        died: called with the id of a process that ended without having been told.
        hold_off: called once all were told to end; has the system take no new connection, when they take none any more.
        failed: called in a process that ends by an exception which nobody is told of otherwise.

    Raises:
        UserError: one could not begin; the others are ended.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # taken by sigwait alone
    alive: dict[int, float] = {}
    try:
        pipes = [_start(work, alive, failed, first=True) for _ in range(count)]
        served = [_first_line(pipe) for pipe in pipes]
        refused = next((said for said in served if "error" in said), None)
        if refused is not None:
            raise UserError(str(refused["error"]))
        ready(served[0])
        _watch(alive, work, died, failed)
        _tell(alive, signal.SIGTERM)
        hold_off()
        listener.close()  # or the system would take connections that nobody accepts
        _wait(alive)
    finally:
        _tell(alive, signal.SIGTERM)
        _wait(alive)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell(alive: dict[int, float], number: signal.Signals) -> None:
    for process in alive:
        os.kill(process, number)


def _wait(alive: dict[int, float]) -> None:
    while alive:
        os.waitpid(alive.popitem()[0], 0)


def _watch(
    alive: dict[int, float],
    work: Callable[[Callable[[dict[str, Any]], None]], None],
    died: Callable[[int], None],
    failed: Callable[[Exception], None],
) -> None:
    """Hand signals on and replace the dead, until told to end."""
    while True:
        number = signal.sigwait(SIGNALS)
        if number == signal.SIGHUP:
            _tell(alive, signal.SIGHUP)
        elif number != signal.SIGCHLD:
            return
        for process in [process for process in alive if os.waitpid(process, os.WNOHANG)[0]]:
            lived = time.monotonic() - alive.pop(process)
            died(process)
            time.sleep(max(0.0, SHORTEST_LIFE - lived))
            os.close(_start(work, alive, failed))


def _start(
    work: Callable[[Callable[[dict[str, Any]], None]], None],
    alive: dict[int, float],
    failed: Callable[[Exception], None],
    first: bool = False,
) -> int:
    """Begin a process; the end of a pipe at which it says what it serves, or why it does not.

    One of the first says why to the process that began it; nobody reads what another one says there.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    process = os.fork()
    if process:
        os.close(writing)
        alive[process] = time.monotonic()
        return reading
    status = 1
    try:
        os.close(reading)
        _end_with(parent)
        # SIGHUP waits until there is somebody to take it: what is loaded by then may be what was there before
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS - {signal.SIGHUP})

        def say(content: dict[str, Any]) -> None:
            with suppress(BrokenPipeError):  # a process in the place of another is not waited for
                os.write(writing, json.dumps(content).encode() + b"\n")

        try:
            work(say)
            status = 0
        except Exception as error:
            if first and isinstance(error, UserError | ServiceError):
                say({"error": str(error)})
            else:
                failed(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _end_with(parent: int) -> None:
    """Have the system send SIGTERM to this process once its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone before it was asked
        os._exit(1)


def _first_line(pipe: int) -> dict[str, Any]:
    with os.fdopen(pipe) as lines:
        text = lines.readline()
    said: dict[str, Any] = json.loads(text) if text else {"error": "--workers: a process ended before it answered"}
    return said
