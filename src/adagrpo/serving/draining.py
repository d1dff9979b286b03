"""The server: a listening socket, signals, and an end that drops nothing which was accepted.

Told to end by SIGTERM or SIGINT, it first says so at /readyz and answers on, so that a proxy or an orchestrator sends
no more. Then it takes no new connection, and answers what was asked on those that it has, within a bound of time.

It stands behind a proxy. What a request may have beside its body is bounded here: head, trailers, extensions of chunks.
How many connections there are, and how long a client may stay silent, is bounded by the proxy: see deploy/nginx.conf.
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
from adagrpo.serving.limits import HEAD_BYTES

BACKLOG = 1024
LAST_WORD_SECONDS = 0.2  # for a request that is on its way on a connection which was accepted
MOST_OPEN_FILES = 65_536


def listen(host: str, port: int) -> socket.socket:
    """Open a socket for the application; port 0 takes a free one.

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


def raise_open_files() -> None:
    """Raise the process's limit of open files as far as it may: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class BoundedProtocol(HttpToolsProtocol):
    """A connection as uvicorn's, closed where a request has more than `HEAD_BYTES` beside its body.

    uvicorn bounds that for its other parser alone, h11, which takes 66 µs more of a processor for each request.
    """

    non_body_bytes = 0  # bytes of the present request that are no body

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self.non_body_bytes += len(data)
        super().data_received(data)
        if self.non_body_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("too large a head, trailer or chunk extension")

    def on_body(self, body: bytes) -> None:
        """Take part of a body."""
        self.non_body_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self.non_body_bytes = 0
        super().on_message_complete()


class Server(uvicorn.Server):
    """Answers with an application until it is told to end."""

    def __init__(self, app: Application) -> None:
        """Make a server of an application."""
        self.app = app
        limits = app.options.limits
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
            backlog=BACKLOG,
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            access_log=False,
            log_config=None,
            log_level="critical",  # its other lines hold what clients sent, and are bounded by nothing
        )
        super().__init__(config)
        app.routes.connections = lambda: len(self.server_state.connections)

    def end(self) -> None:
        """Tell it to end, from any thread."""
        self.app.draining = self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at a signal, with status 0: uvicorn's own method would raise the signal again afterwards."""
        self.end()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as the module says."""
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
