"""Server process: listening socket, signals and graceful shutdown.

On SIGTERM or SIGINT, /readyz turns 503 while requests are still answered. Then no connection is accepted, and requests
on open ones are answered within `Limits.drain_seconds`.
"""

from __future__ import annotations

import asyncio
import math
import resource
import socket
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from adagrpo.errors import UserError
from adagrpo.serving.app import Application

BACKLOG = 1024
HEAD_BYTES = 32_768  # of a request outside its body: head, trailers, chunk extensions
LAST_WORD_SECONDS = 0.2  # for requests in flight on accepted connections
MOST_OPEN_FILES = 65_536


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket, on a free port for 0; `UserError` if it cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; choose another") from error
    # asyncio sets it only on its own sockets; without it, the body waits 40 ms for the ACK of the head
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def raise_open_files() -> None:
    """Raise the process's limit of open files, one per connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with at most `HEAD_BYTES` outside a body."""

    non_body_bytes = 0  # bytes of the current request outside its body

    def data_received(self, data: bytes) -> None:
        self.non_body_bytes += len(data)
        super().data_received(data)
        if self.non_body_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("too large a head, trailer or chunk extension")

    def on_body(self, body: bytes) -> None:
        self.non_body_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.non_body_bytes = 0
        super().on_message_complete()


class Server(uvicorn.Server):
    """uvicorn server that drains before it stops."""

    def __init__(self, app: Application) -> None:
        self.app = app
        limits = app.options.limits
        config = uvicorn.Config(
            app,
            http=_BoundedProtocol,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
            backlog=BACKLOG,
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            log_level="critical",  # its other lines hold client data, without limit
        )
        super().__init__(config)
        app.routes.connections = lambda: len(self.server_state.connections)

    def end(self) -> None:
        """Shut down, from any thread."""
        self.app.draining = self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down on a signal, with status 0."""
        self.end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then stop."""
        log = self.app.options.log
        if log.share:
            log.event("ending", connections=len(self.server_state.connections))
        self.app.draining = True
        await asyncio.sleep(self.app.options.limits.grace_seconds)
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_WORD_SECONDS)
        await super().shutdown(sockets)
        cut = len(self.server_state.connections)
        if cut or log.share:
            log.event("ended", cut_off=cut)
