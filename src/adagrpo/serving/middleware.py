"""ASGI middleware that checks token, queue and size of each request before its body is parsed.

It passes the body on as `scope["state"]["body"]`, answers refusals, and counts and logs every request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import orjson
from fastapi import Request, Response

from adagrpo.serving.batch_queue import Overloaded
from adagrpo.serving.options import Options
from adagrpo.serving.service_metrics import ServiceMetrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/livez", "/readyz")  # probes of orchestrators, without a token
ROUTES = (
    *OPEN, "/health", "/metrics", "/docs", "/openapi.json", "/recommend", "/v1/recommend", "/v1/feedback",
    "/v1/admin/reload", "/v1/admin/experiment", "/", "/v1/items", "/v1/explain",
)  # fmt: skip
ASKING = ("/recommend", "/v1/recommend")
WITH_BODY = (*ASKING, "/v1/feedback", "/v1/admin/reload", "/v1/admin/experiment", "/v1/explain")
JSON = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")
LINGER_SECONDS, LINGER_BYTES = 1.0, 16_000_000  # of further data read after a refusal


class _Gone(Exception):
    pass


class _Refused(Exception):
    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers


class RequestMiddleware:
    """ASGI middleware around the API."""

    def __init__(
        self,
        inner: Application,
        options: Options,
        metrics: ServiceMetrics,
        late: Callable[[float], float | None],
        direct: Mapping[str, Callable[[Request], Awaitable[Response]]],
        ending: Callable[[], bool] = lambda: False,  # whether answers close their connection
    ) -> None:
        """Wrap an application.

        Args:
            late: seconds by which a list requested now would miss an answer in the given seconds; None: in time.
            direct: POST handlers by path that bypass the slow routing of `inner`.
        """
        self._inner, self._metrics = inner, metrics
        self._limits, self._bearers, self._log = options.limits, options.bearers, options.log
        self._late, self._direct, self._ending = late, direct, ending
        self.lag = 0.0  # approximate seconds that a request has waited unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        path = scope["path"]
        route = path if path in ROUTES else "/v1/items/{id}" if path.startswith("/v1/items/") else "other"
        state = scope.setdefault("state", {})
        state["started"], state["disconnected"] = started, lambda: False  # before the body is read
        state["log"] = fields = {"route": route, "method": scope["method"]}
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._ending():
                    message["headers"] = [*message["headers"], CLOSE]
            await send(message)

        try:
            await self._enter(path, scope, state, receive)
            direct = self._direct.get(path) if scope["method"] == "POST" else None
            if direct is None:
                await self._inner(scope, receive, noted)
            else:
                await (await direct(Request(scope)))(scope, receive, noted)
        except _Gone:
            return
        except _Refused as refused:
            await _refuse(noted, refused, receive)
        defect = state.get("defect")
        if defect is not None:
            self._metrics.errors.inc()
            self._log.defect(defect, route=route)
        if "turned_away" in state:
            self._metrics.refused.labels(state["turned_away"]).inc()
        seconds = time.perf_counter() - started
        self._metrics.answered(route, status, seconds)
        if self._log.share or status >= 500:
            self._log.request(status, {**fields, "ms": round(1000 * seconds, 2)})

    async def _enter(self, path: str, scope: Scope, state: dict[str, Any], receive: Receive) -> None:
        headers = dict(scope["headers"])
        if self._bearers and path not in OPEN and not self._bearers.admit(headers.get(b"authorization")):
            self._metrics.refused.labels("token").inc()
            raise _Refused(401, "a token is needed: Authorization: Bearer ...", (b"www-authenticate", b"Bearer"))
        if path not in WITH_BODY or scope["method"] != "POST":
            state["body"] = b""
            return
        length = headers.get(b"content-length", b"0")
        if int(length) > self._limits.body_bytes:
            raise self._too_large()
        if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
            raise _Refused(415, "content-type must be application/json")
        if path in ASKING:
            late = self._late(self._seconds_left())
            if late is not None:
                error = Overloaded(late)
                state["turned_away"] = "queue"
                raise _Refused(503, str(error), (b"retry-after", b"%d" % error.retry_after))
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                state["body"] = await self._body(receive)
        except TimeoutError:
            self._metrics.refused.labels("time").inc()
            raise _Refused(408, "the body did not come in time", CLOSE) from None
        state["disconnected"] = asyncio.ensure_future(receive()).done  # after the body, only a disconnect can come
        state["deadline"] = time.monotonic() + self._seconds_left()  # sending the body has its own limit
        state["request_id"] = os.urandom(16).hex()

    def _seconds_left(self) -> float:
        """Return the seconds left to answer a request, at least half the deadline."""
        whole = self._limits.deadline_seconds
        return max(whole - self.lag, whole / 2)

    async def _body(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self._limits.body_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(pieces)

    def _too_large(self) -> _Refused:
        self._metrics.refused.labels("size").inc()
        return _Refused(413, f"a body may have {self._limits.body_bytes:,} bytes", CLOSE)


async def _refuse(send: Send, refused: _Refused, receive: Receive) -> None:
    """Send a refusal; before closing, drain the body so that the client can read the answer."""
    body = orjson.dumps({"detail": str(refused)})
    head = [JSON, (b"content-length", b"%d" % len(body)), *refused.headers]
    closes = CLOSE in refused.headers
    await send({"type": "http.response.start", "status": refused.status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": closes})
    if closes:
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                dropped = 0
                while dropped < LINGER_BYTES and (message := await receive()).get("more_body"):
                    dropped += len(message["body"])
        await send({"type": "http.response.body", "body": b""})
