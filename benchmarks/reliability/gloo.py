"""Processes that fit a model together, as forks of one that has computed nothing yet; they talk by gloo."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable
from typing import Any

from adagrpo.trainer import loop
from adagrpo.trainer.processes import LostProcess, processes

__all__ = ["LOST", "all_whole", "die_in", "forked"]

LOST = 3  # status of a process that found another one gone


def forked(build: Callable[[], Any], count: int) -> list[int]:
    """Carry something out in a fork for each process, which need not import again.

    Args:
        build: what each does.
        count: of processes.

    Returns:
        How each ended: a status, or a signal as a negative number.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    started = []
    for rank in range(count):
        process = os.fork()
        if process == 0:
            os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                build()
                processes().part()
                os._exit(0)
            except LostProcess:
                os._exit(LOST)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        started.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def all_whole(ends: list[int]) -> None:
    """Raise where a process did not end well."""
    if any(ends):
        raise RuntimeError(f"a fit ended with {ends}")


def die_in(call: int) -> None:
    """Make this process, if it is the last one, kill itself in a backward pass."""
    together = processes()
    if together.rank != together.count - 1:
        return
    original, left = loop.Accelerator.backward, [call]

    def backward(*arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments, **options)

    loop.Accelerator.backward = backward
