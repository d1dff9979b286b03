"""The server: a listening socket, signals, and an end that drops nothing which was accepted.

Told to end by SIGTERM or SIGINT, it first says so at /readyz and answers on, so that those who route by it stop. Then
new connections are held off and those that the system has taken already are accepted. Last, all that was asked is
answered, within a bound of time: a client that does not send the rest of its request, or does not read, is cut off.

A worker leaves new connections to those that share its socket; the process that began them all holds connections off.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import addressof, create_string_buffer
from functools import partial
from typing import Any

import uvicorn

from adagrpo.errors import UserError
from adagrpo.serving.app import Application
from adagrpo.serving.connections import BoundedProtocol, ConnectionTable

__all__ = ["Server", "hold_off", "listen"]

BACKLOG = 1024
SETTLE_SECONDS = 0.1  # for connections that were half made when new ones were held off
LAST_WORD_SECONDS = 0.2  # for a request that was on its way on an idle connection
SO_ATTACH_FILTER = 26


def listen(host: str, port: int) -> socket.socket:
    """A socket for the application; port 0 takes a free one.

    Raises:
        UserError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; choose another") from error
    # asyncio does so for sockets of its own alone; without, the body waits 40 ms for the head to be acknowledged
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def hold_off(listener: socket.socket) -> None:
    """Have the system take no new connection, without refusing it: the client asks again after a second.

    A socket that is closed resets the connections which the system has taken and nobody accepted. A filter that drops
    the first packet of each new connection lets those be accepted before. Where there are no filters, nothing happens.
    """
    # load the byte of flags in the TCP header; if SYN is set, keep 0 bytes of the packet, else all of it
    program = [(0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    code = create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), addressof(code)))


class Server(uvicorn.Server):
    """Answers with an application until it is told to end."""

    def __init__(self, app: Application) -> None:
        """Make a server; it loads again what it serves at SIGHUP."""
        self.app = app
        self.limits = app.options.limits
        self.table = ConnectionTable(self.limits, app.metrics.turned_away)
        app.routes.connections = lambda: len(self.table.open)
        app.intake.lag = lambda: self.table.lag
        self.table.turns_away = app.intake.turns_away
        config = uvicorn.Config(
            app,
            http=partial(BoundedProtocol, self.table),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            date_header=False,
            server_header=False,
            backlog=BACKLOG,
            proxy_headers=False,
        )
        super().__init__(config)
        self._told = asyncio.Event()

    def end(self) -> None:
        """Tell it to end, from any thread."""
        self.app.draining = self.table.draining = True
        self._loop.call_soon_threadsafe(self._told.set)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are taken by the loop, see `startup`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._defect)
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)  # its lines are bounded by nothing
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.end)
            self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # what came meanwhile, see `workers`

    async def main_loop(self) -> None:
        """Wait for the end."""
        self.server_state.default_headers = self.config.encoded_headers
        sweeping = asyncio.create_task(self.table.sweeping())
        await self._told.wait()
        self._sweeping = sweeping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as the module says."""
        log = self.app.options.log
        if log.share:
            log.event("ending", connections=len(self.table.open))
        for connection in list(self.table.open):
            if connection.cycle is not None and not connection.cycle.response_complete:
                connection.cycle.keep_alive = False
        await asyncio.sleep(self.limits.grace_seconds)
        if self.app.options.parent is None:  # else others answer on at the same socket
            for listener in sockets or []:
                hold_off(listener)
        await asyncio.sleep(SETTLE_SECONDS)
        for server in self.servers:
            server.close()
        bound = self._loop.time() + self.limits.drain_seconds
        last_word = self._loop.time() + LAST_WORD_SECONDS
        while self._loop.time() < bound and (self.table.at_work or self._loop.time() < last_word):
            await asyncio.sleep(0.01)
        cut = sum(connection.phase not in ("idle", "new") for connection in self.table.open)
        for connection in list(self.table.open):
            connection.cut()
        self._sweeping.cancel()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._tasks_end(), 1.0)
        if cut or log.share:
            log.event("ended", cut_off=cut)
        await self.lifespan.shutdown()

    async def _tasks_end(self) -> None:
        while self.server_state.tasks:
            await asyncio.sleep(0.01)

    def _hang_up(self) -> None:
        threading.Thread(target=self.app.reload, name="reload", daemon=True).start()

    def _defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what went wrong outside of any request, without its message."""
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.app.options.log.defect(error)
        else:
            self.app.options.log.event("defect", type="loop")
