"""Clients of a service that take little of the processor which they share with it; a process of their own.

    python -m benchmarks.wire PORT BODIES --clients 32 --seconds 10 [--rate 500] [--path /v1/recommend]

Without a rate each client asks again when it is answered. With one, requests come at that rate whatever becomes of
those before, each on a connection that is free; a new one is made where there is none. A wait is counted from when its
request was due, so that a client which comes late hides nothing.

There is no task, no future and no JSON for a request: bytes made beforehand go out when an answer has come in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Load", "as_request", "load"]

MOST = 2000  # connections at a time; what is due beyond them is lost, and counted
TICK = 0.002  # seconds
PATIENCE = 30.0  # seconds after the last request


class Load(NamedTuple):
    """What became of the requests of a load."""

    seconds: float
    answered: int  # with a list
    refused: int  # 429 or 503 with Retry-After
    others: dict[str, int]  # other statuses and errors, each with its count
    answered_ms: dict[str, float]  # percentiles
    refused_ms: dict[str, float]
    client_ms: float  # processor time of the clients for a request

    @property
    def rate(self) -> float:
        """Lists a second."""
        return self.answered / self.seconds


class _Wire(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self, clients: _Clients) -> None:
        self.clients = clients
        self.due = 0.0  # of the request on its way
        self.busy = self.closing = False
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def ask(self, request: bytes, due: float) -> None:
        self.busy, self.due = True, due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        if end >= 0:
            head = data[:end].lower()
            length = head.find(b"content-length: ")
            after = head.find(b"\r", length)
            whole = end + 4 + int(head[length + 16 : after if after > 0 else end])
            if len(data) >= whole:
                self.buffer = b""
                self.busy = False
                self.closing = b"connection: close" in head
                self.clients.answered(self, data[9:12], head)
                return
        self.buffer = data

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        if self.busy:
            self.busy = False
            self.clients.failed(self, type(error or ConnectionResetError()).__name__)


class _Clients:
    """All connections, and what became of what was asked on them."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.port, self.requests = port, requests
        self.place = self.open = 0
        self.free: list[_Wire] = []
        self.waits: dict[str, list[float]] = {"200": [], "refused": []}
        self.others: Counter[str] = Counter()
        self.left = asyncio.Event()  # set while nothing is on its way
        self.after: Any = lambda wire: None

    def request(self) -> bytes:
        self.place += 1
        return self.requests[self.place % len(self.requests)]

    def answered(self, wire: _Wire, status: bytes, head: bytes) -> None:
        waited = time.perf_counter() - wire.due
        if status == b"200":
            self.waits["200"].append(waited)
        elif status in (b"429", b"503") and b"retry-after:" in head:
            self.waits["refused"].append(waited)
        else:
            self.others[status.decode()] += 1
        self._done(wire)

    def failed(self, wire: _Wire, why: str) -> None:
        self.others[why] += 1
        self._done(wire)

    def _done(self, wire: _Wire) -> None:
        self.open -= 1
        if wire.closing:
            wire.transport.close()
        self.after(wire)
        if not self.open:
            self.left.set()

    def begin(self) -> None:
        self.open += 1
        self.left.clear()

    async def connect(self, due: float) -> None:
        """Ask on a new connection; it was begun."""
        loop = asyncio.get_running_loop()
        try:
            _, wire = await loop.create_connection(partial(_Wire, self), "127.0.0.1", self.port)
        except OSError as error:
            self.open -= 1
            self.others[type(error).__name__] += 1
            return
        wire.ask(self.request(), due)

    async def closed_loop(self, clients: int, seconds: float) -> None:
        end = time.perf_counter() + seconds
        tasks: set[asyncio.Task[None]] = set()

        def again(wire: _Wire) -> None:
            now = time.perf_counter()
            if now >= end:
                return
            self.begin()
            if not wire.closing:
                wire.ask(self.request(), now)
                return
            task = asyncio.create_task(self.connect(now))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        self.after = again
        for _ in range(clients):
            self.begin()
            await self.connect(time.perf_counter())
        await asyncio.wait_for(self.left.wait(), seconds + PATIENCE)

    async def open_loop(self, rate: float, seconds: float) -> None:
        started, sent = time.perf_counter(), 0
        tasks: set[asyncio.Task[None]] = set()
        self.after = lambda wire: None if wire.closing else self.free.append(wire)
        while (passed := time.perf_counter() - started) < seconds:
            while sent < int(passed * rate):
                due = started + sent / rate
                sent += 1
                wire = self.free.pop() if self.free else None
                if wire is not None and not wire.closing:
                    self.begin()
                    wire.ask(self.request(), due)
                elif self.open < MOST:
                    self.begin()
                    task = asyncio.create_task(self.connect(due))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                else:
                    self.others["not sent"] += 1
            await asyncio.sleep(TICK)
        if self.open:
            await asyncio.wait_for(self.left.wait(), PATIENCE)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    places = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 99) if ordered}
    return {name: round(1000 * value, 2) for name, value in places.items()}


def main() -> None:
    """Ask, and print what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--path", default="/v1/recommend")
    options = parser.parse_args()
    lines = options.bodies.read_text(encoding="utf-8").splitlines()
    clients = _Clients(options.port, [as_request(json.loads(line), options.path) for line in lines])
    asking = (
        clients.closed_loop(options.clients, options.seconds)
        if options.rate is None
        else clients.open_loop(options.rate, options.seconds)
    )
    before, started = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), time.perf_counter()
    _run(asking)
    seconds = time.perf_counter() - started
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before
    answered, refused = clients.waits["200"], clients.waits["refused"]
    asked = len(answered) + len(refused) + clients.others.total()
    waits = _percentiles(answered), _percentiles(refused)
    result = Load(seconds, len(answered), len(refused), dict(clients.others), *waits, round(1000 * used / asked, 4))
    sys.stdout.write(json.dumps(result._asdict()))


def _run(asking: Any) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(asking)
    else:
        uvloop.run(asking)


def as_request(body: object, path: str = "/v1/recommend", **headers: str) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def load(
    port: int,
    bodies: Path,
    seconds: float,
    *,
    clients: int = 32,
    rate: float | None = None,
    path: str = "/v1/recommend",
) -> Load:
    """Ask a service from another process.

    Args:
        port: of the service.
        bodies: a file with a body in every line.
        seconds: for which requests are sent.
        clients: that ask at a time, where there is no rate.
        rate: requests a second.
        path: that is asked.
    """
    command = [sys.executable, "-m", "benchmarks.wire", str(port), str(bodies), "--seconds", str(seconds)]
    command += ["--clients", str(clients), "--path", path, *(["--rate", str(rate)] if rate else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parent.parent)
    return Load(**json.loads(done.stdout))


if __name__ == "__main__":
    main()
