"""Clients of a service, in a process of their own, and the service in another.

    python -m benchmarks.reliability.clients PORT BODIES --clients 32 --seconds 10 [--rate 500]

Without a rate each client asks again when it is answered. With one, requests come at that rate whatever becomes of
those before, each on a connection that is free; a new one is made where there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from benchmarks.reliability.foreign import RECIPE

__all__ = ["Load", "as_request", "load", "make_run", "memory", "served"]

MOST = 2000  # connections


class Load(NamedTuple):
    """What became of the requests of a load."""

    seconds: float
    answered: int  # with a list
    refused: int  # 429 or 503 with Retry-After
    others: dict[str, int]  # other statuses and errors, each with its count
    answered_ms: dict[str, float]  # percentiles
    refused_ms: dict[str, float]

    @property
    def rate(self) -> float:
        """Lists a second."""
        return self.answered / self.seconds


class _Wire(asyncio.Protocol):
    """A connection with one request at a time."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.reply: asyncio.Future[tuple[int, bytes]] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self.buffer) >= end + 4 + length and self.reply is not None and not self.reply.done():
            del self.buffer[: end + 4 + length]
            self.closed = self.closed or b"connection: close" in head
            self.reply.set_result((int(head[9:12]), head))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.reply is not None and not self.reply.done():
            self.reply.set_exception(error or ConnectionResetError("closed"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.reply


class _Clients:
    def __init__(self, port: int, requests: list[bytes]) -> None:
        self.port, self.requests = port, requests
        self.free: list[_Wire] = []
        self.made = self.place = 0
        self.outcomes: list[tuple[str, float]] = []

    async def wire(self) -> _Wire:
        while self.free:
            found = self.free.pop()
            if not found.closed:
                return found
        self.made += 1
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Wire, "127.0.0.1", self.port))[1]

    async def one(self, due: float) -> None:
        self.place += 1
        try:
            wire = await self.wire()
            status, head = await asyncio.wait_for(wire.ask(self.requests[self.place % len(self.requests)]), 30)
        except (OSError, TimeoutError) as error:
            self.outcomes.append((type(error).__name__, time.perf_counter() - due))
            return
        refused = status in (429, 503) and b"retry-after:" in head
        self.outcomes.append(("refused" if refused else str(status), time.perf_counter() - due))
        if not wire.closed:
            self.free.append(wire)

    async def closed_loop(self, clients: int, seconds: float) -> None:
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open_loop(self, rate: float, seconds: float) -> None:
        started, sent = time.perf_counter(), 0
        tasks: set[asyncio.Task[None]] = set()
        while time.perf_counter() - started < seconds:
            due = int((time.perf_counter() - started) * rate)
            for _ in range(min(due - sent, MOST - len(tasks))):
                task = asyncio.create_task(self.one(time.perf_counter()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            sent = due
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{share}": round(1000 * float(np.percentile(seconds, share)), 1) for share in (50, 99)} if seconds else {}


def main() -> None:
    """Ask, and print what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    requests = [as_request(json.loads(line)) for line in options.bodies.read_text(encoding="utf-8").splitlines()]
    clients = _Clients(options.port, requests)
    started = time.perf_counter()
    if options.rate is None:
        asyncio.run(clients.closed_loop(options.clients, options.seconds))
    else:
        asyncio.run(clients.open_loop(options.rate, options.seconds))
    seconds = time.perf_counter() - started
    kinds: dict[str, list[float]] = {}
    for kind, taken in clients.outcomes:
        kinds.setdefault(kind, []).append(taken)
    answered, refused = kinds.pop("200", []), kinds.pop("refused", [])
    others = {kind: len(taken) for kind, taken in kinds.items()}
    result = Load(seconds, len(answered), len(refused), others, _percentiles(answered), _percentiles(refused))
    sys.stdout.write(json.dumps(result._asdict()))


def as_request(body: object, path: str = "/v1/recommend", **headers: str) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def load(port: int, bodies: Path, seconds: float, *, clients: int = 32, rate: float | None = None) -> Load:
    """Ask a service from another process.

    Args:
        port: of the service.
        bodies: a file with a body in every line.
        seconds: for which requests are sent.
        clients: that ask at a time, where there is no rate.
        rate: requests a second.
    """
    command = [sys.executable, "-m", "benchmarks.reliability.clients", str(port), str(bodies)]
    command += ["--seconds", str(seconds), "--clients", str(clients), *(["--rate", str(rate)] if rate else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parent.parent.parent)
    return Load(**json.loads(done.stdout))


def memory(process: int) -> float:
    """MB of a process in RAM."""
    text = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(text.split("VmRSS:")[1].split()[0]) / 1000


def make_run(work: Path, **changes: object) -> tuple[Path, Path]:
    """A small run of a simulated marketplace, and a file with bodies of requests of its users."""
    recipe, run = work / "recipe.yaml", work / "run"
    recipe.write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    command = [sys.executable, "-m", "adagrpo", "run", str(recipe), "--out", str(run), "--quiet"]
    subprocess.run(command, check=True)
    items = pl.read_parquet(run / "prepare" / "items.parquet", columns=["item_id"])["item_id"].to_list()
    draw = np.random.default_rng(0)
    asked = [[items[item] for item in draw.integers(0, len(items), draw.integers(1, 20))] for _ in range(500)]
    bodies = work / "bodies.jsonl"
    bodies.write_text("".join(json.dumps({"history": history}) + "\n" for history in asked), encoding="utf-8")
    return run, bodies


@contextmanager
def served(run: Path, *options: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port and process of a service that lives as long as the block."""
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(run), "--port", "0", "--json", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as process:
        try:
            assert process.stdout is not None
            yield int(json.loads(process.stdout.readline())["url"].rsplit(":", 1)[1]), process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()


if __name__ == "__main__":
    main()
