"""Serving over HTTP: `adagrpo serve` as a process of its own, and clients that ask it for real histories."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from adagrpo.data.prepared import load_item_ids
from benchmarks.compact import models_of
from benchmarks.rows import Row, median_spread

__all__ = ["serving"]

ALONE, WARMUP = 400, 100  # requests one at a time, after those that warm up
CLIENTS, SECONDS, TURNS = 32, 3.0, 5


def serving(data: Path, work: Path) -> list[Row]:
    """One request at a time, and 32 clients that each ask again when answered; test histories of Beauty, beam 50."""
    rows = []
    for kind in ("compact", "hybrid"):
        models = models_of(data, work, kind)
        names, cases = load_item_ids(models.data.prepared).to_list(), models.data.cases("test")
        chosen = np.random.default_rng(0).choice(len(cases), 2000, replace=False)
        bodies = [{"history": [names[item] for item in cases.histories.row(row)], "k": 10} for row in chosen]
        with served(models.run.directory) as port:
            requests = [as_request(body) for body in bodies]
            waits = asyncio.run(one_at_a_time(port, requests))
            rates = [asyncio.run(together(port, requests)) for _ in range(TURNS)]
        ordered = sorted(1000 * seconds for seconds in waits)
        middle = statistics.median(ordered)
        spread = (ordered[0], ordered[-1])
        rate, rates_spread = median_spread(rates)
        ending = "" if kind == "compact" else f"_{kind}"
        percentiles = {f"p{share}_ms": float(np.percentile(ordered, share)) for share in (90, 99)}
        against = "wall clock of the client, connection kept"
        rows += [
            Row(f"serve_p50_ms{ending}", middle, "ms", spread, "<= 10", middle <= 10, against, percentiles),
            Row(f"serve_rps_32{ending}", rate, "requests/s", rates_spread, ">= 300", rate >= 300, against),
        ]
    return rows


@contextmanager
def served(run: Path) -> Iterator[int]:
    """The port of a service that lives as long as the block."""
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(run), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(json.loads(process.stdout.readline())["url"].rsplit(":", 1)[1])
        finally:
            process.terminate()


def as_request(body: dict[str, object]) -> bytes:
    """A request as it goes over the wire."""
    content = json.dumps(body).encode()
    head = f"POST /recommend HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> dict[str, object]:
    """Send a request and read the answer, which must be a list of ten."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length:")[1].split("\r\n")[0])
    reply: dict[str, object] = json.loads(await reader.readexactly(length))
    if " 200 " not in head.split("\r\n")[0] or len(reply["items"]) != 10:  # type: ignore[arg-type]
        raise RuntimeError(f"the service answered {head.splitlines()[0]} {reply}")
    return reply


async def one_at_a_time(port: int, requests: list[bytes]) -> list[float]:
    """Seconds of each request after the warm-up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds = []
    for request in requests[: WARMUP + ALONE]:
        started = time.perf_counter()
        await ask(reader, writer, request)
        seconds.append(time.perf_counter() - started)
    writer.close()
    return seconds[WARMUP:]


async def together(port: int, requests: list[bytes]) -> float:
    """Requests a second that `CLIENTS` get answered."""
    end, done = time.perf_counter() + SECONDS, 0

    async def client(first: int) -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        place = first
        while time.perf_counter() < end:
            await ask(reader, writer, requests[place % len(requests)])
            place, done = place + CLIENTS, done + 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*map(client, range(CLIENTS)))
    return done / (time.perf_counter() - started)
