"""Work in daemon threads; unlike those of `asyncio.to_thread`, process exit does not wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Any, TypeVar

OutT = TypeVar("OutT")


async def in_daemon_thread(work: Callable[..., OutT], *arguments: Any, **named: Any) -> OutT:
    """Return or raise what `work` does, in a daemon thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[OutT] = loop.create_future()

    def settle(call: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            call(outcome)

    def carry_out() -> None:
        try:
            settled = partial(settle, future.set_result, work(*arguments, **named))
        except BaseException as error:  # SystemExit would end the thread with the future pending
            raised = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
            settled = partial(settle, future.set_exception, raised)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settled)

    Thread(target=carry_out, name="in-daemon-thread", daemon=True).start()
    return await future
