"""Connections that are bounded in number, size and time, below anything that parses a body.

uvicorn reads HTTP; this adds what it leaves open: how large a head may be, how long a client may take for head, body
and answer, how many connections there are, and what happens to a client that is refused while it still sends.
The full table closes the connection that has been idle longest before it turns anybody away.

Under overload most requests are turned away, so that has to cost next to nothing: it is decided once the head is there,
and the answer is bytes that are made already. No task begins, and nothing of the body is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from adagrpo.serving.limits import Limits

__all__ = ["BoundedProtocol", "ConnectionTable"]

Headers = Sequence[tuple[bytes, bytes]]

SWEEP_SECONDS = 0.1
ASKING = (b"/v1/recommend", b"/recommend")  # what is asked of the policy
MOST_LINGERING = 256  # refused clients beyond that are cut off at once
LINGER_BYTES = 16_000_000


class ConnectionTable:
    """All connections of a process; one sweep finds those that take too long."""

    def __init__(self, limits: Limits, count: Callable[[str], None] = lambda why: None) -> None:
        """Begin without connections.

        Args:
            limits: of them.
            count: called with why one was turned away or cut off.
        """
        self.limits, self.count = limits, count
        self.open: set[BoundedProtocol] = set()
        self.lingering = 0
        self.draining = False
        self.lag = 0.0  # seconds that what arrives waits unread, about
        # the answer to a request that is turned away for want of time; an application knows
        self.turns_away: Callable[[bytes, Headers], bytes | None] = lambda path, headers: None

    def admits(self, connection: BoundedProtocol) -> bool:
        """Take a connection in, if need be in the place of one on which nothing is asked."""
        if len(self.open) >= self.limits.connections:
            idle = [other for other in self.open if other.phase == "idle" and other.asked]
            if not idle:
                self.count("connections")
                return False
            min(idle, key=lambda other: other.since).cut()
        self.open.add(connection)
        return True

    def sweep(self, now: float) -> None:
        """Answer or cut off what was late at the last sweep too: what came while the process paused is read first."""
        limits = self.limits
        bounds = {
            "idle": limits.idle_seconds,
            "new": limits.head_seconds,
            "head": limits.head_seconds,
            "body": limits.body_seconds,
            "writing": limits.write_seconds,
        }
        for connection in list(self.open):
            phase = connection.phase
            late = (phase, connection.since) if phase != "busy" and now - connection.since > bounds[phase] else None
            seen, connection.late = connection.late, late
            if late is not None and late == seen:
                if phase in ("head", "body", "writing"):
                    self.count("time")
                connection.expire(phase)

    async def sweeping(self) -> None:
        """Sweep until cancelled, and see how far the event loop is behind."""
        loop = asyncio.get_running_loop()
        while True:
            due = time.monotonic() + SWEEP_SECONDS
            await asyncio.sleep(SWEEP_SECONDS)
            self.lag = max(0.0, time.monotonic() - due)
            self.sweep(loop.time())

    @property
    def at_work(self) -> bool:
        """Whether somebody waits for an answer, or is in the middle of a request."""
        return any(connection.phase not in ("idle", "new") for connection in self.open)


class _Transport:
    """A transport that, told to close while its client still sends, first lets the client read what it was told."""

    def __init__(self, inner: asyncio.Transport, protocol: BoundedProtocol) -> None:
        self._inner, self._protocol = inner, protocol
        self.write = inner.write

    def close(self) -> None:
        self._protocol.end()

    def is_closing(self) -> bool:
        return self._protocol.ending or self._inner.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, table: ConnectionTable, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.table = table
        self.since = self.loop.time()  # when its phase began
        self.late: tuple[str, float] | None = None  # what the last sweep saw
        self.asked = False  # a request has come
        self.ending = False
        self._in_head = False
        self._refusal: bytes | None = None  # for a request of which the body is still to come
        self._head_bytes = self._dropped = 0

    @property
    def phase(self) -> str:
        """new, idle, head, body, busy or writing."""
        cycle = self.cycle
        if self._refusal is not None:
            return "body"
        if cycle is not None and not cycle.response_complete:
            if self.transport.get_write_buffer_size():
                return "writing"
            return "body" if cycle.more_body else "busy"
        if self._in_head:
            return "head"
        if not self.asked:
            return "new"
        return "writing" if self.transport.get_write_buffer_size() else "idle"

    # ------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or turn it away."""
        self._inner = transport
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        if not self.table.admits(self):
            self.refuse(503, "too many connections; try again later", retry_after=1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.table.open.discard(self)
        if self.ending:
            self.ending = False
            self.table.lingering -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what a refused client still sends is dropped."""
        if self.ending:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self._inner.abort()
            return
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self.cycle is not None:  # nothing here can be upgraded to; the request is answered as it is
                self.cycle.keep_alive = False
            return
        except httptools.HttpParserError:
            self.table.count("malformed")
            self.refuse(400, "not HTTP/1.1")
            return
        if self._in_head and self._head_bytes > self.table.limits.head_bytes:
            self.refuse(431, f"the head of a request may have {self.table.limits.head_bytes:,} bytes")

    # ------------------------------------------------ what the parser calls

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self.asked = True, True
        if self.cycle is None or self.cycle.response_complete:
            self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        large = self._head_bytes > self.table.limits.head_bytes
        self._in_head, self._head_bytes = False, 0
        self.since = self.loop.time()
        if large and sum(len(name) + len(value) for name, value in self.headers) > self.table.limits.head_bytes:
            raise ValueError("too large a head")  # the parser passes it on as its own error
        if self.url in ASKING and self._free_for_next():
            self._refusal = self.table.turns_away(self.url, self.headers)
            if self._refusal is not None:
                return
        super().on_headers_complete()
        self.scope["state"]["cycle"] = self.cycle
        if self.table.draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Part of its body is there."""
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._head_bytes = 0  # what came of its body is of no head
        if self._refusal is None:
            super().on_message_complete()
            return
        self._inner.write(self._refusal)
        self._refusal, self.since = None, self.loop.time()

    def _free_for_next(self) -> bool:
        """Whether a request may be answered here: nothing is answered before it, and the connection stays."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.pipeline
            and not self.table.draining
            and not self.expect_100_continue
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )

    def on_response_complete(self) -> None:
        """As uvicorn's, with the sweep in place of a timer for each answer."""
        self.server_state.total_requests += 1
        self.since = self.loop.time()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    # ------------------------------------------------ ends

    def refuse(self, status: int, reason: str, retry_after: int | None = None) -> None:
        """Answer what no application sees, and close."""
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not begun:
            body = orjson.dumps({"detail": reason})
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
            again = b"" if retry_after is None else b"retry-after: %d\r\n" % retry_after
            self._inner.write(STATUS_LINE[status] + head + again + b"\r\n" + body)
        self._leave_application()
        self.end(still_sends=True)

    def expire(self, phase: str) -> None:
        """End a connection that took too long in a phase."""
        if phase in ("head", "body"):
            self.refuse(408, f"the {'headers' if phase == 'head' else 'body'} did not come in time")
        else:
            self.cut()

    def cut(self) -> None:
        """End at once; what has not been read by the client is lost if it does not read."""
        self._leave_application()
        if self._inner.get_write_buffer_size():
            self._inner.abort()
        else:
            self._inner.close()
        self.table.open.discard(self)

    def end(self, still_sends: bool = False) -> None:
        """Close; while the client still sends, only after it could read the answer."""
        sending = still_sends or self._in_head or (self.cycle is not None and self.cycle.more_body)
        if self.ending or not sending or self._inner.is_closing():
            if not self.ending:
                self._inner.close()
            return
        if self.table.lingering >= MOST_LINGERING:
            self._inner.close()
            return
        self.ending = True
        self.table.lingering += 1
        self.table.open.discard(self)
        self._inner.resume_reading()
        if self._inner.can_write_eof():
            self._inner.write_eof()
        self.loop.call_later(self.table.limits.linger_seconds, self._inner.abort)

    def _leave_application(self) -> None:
        """Whoever works on the request need not go on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
