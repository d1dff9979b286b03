"""Serving over HTTP: `adagrpo serve` as a process of its own, and clients that ask it for real histories."""

from __future__ import annotations

import asyncio
import json
import os
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
from benchmarks.wire import as_request, load

__all__ = ["serving"]

ALONE, WARMUP = 400, 100  # requests one at a time, after those that warm up
CLIENTS, SECONDS, TURNS = 32, 3.0, 5
SHARE, CALM = 0.7, 20.0  # of the rate of 32 clients, for so many seconds


def serving(data: Path, work: Path) -> list[Row]:
    """One request at a time, 32 clients that each ask again when answered, and 70 % of that; Beauty, beam 50."""
    rows = []
    for kind in ("compact", "hybrid"):
        models = models_of(data, work, kind)
        names, cases = load_item_ids(models.data.prepared).to_list(), models.data.cases("test")
        chosen = np.random.default_rng(0).choice(len(cases), 2000, replace=False)
        bodies = [{"history": [names[item] for item in cases.histories.row(row)], "k": 10} for row in chosen]
        lines = work / f"bodies-{kind}.jsonl"
        lines.write_text("".join(json.dumps(body) + "\n" for body in bodies), encoding="utf-8")
        with served(models.run.directory) as (port, process):
            waits = asyncio.run(one_at_a_time(port, [as_request(body, "/recommend") for body in bodies]))
            load(port, lines, SECONDS, clients=CLIENTS)
            before = processor_seconds(process)
            loads = [load(port, lines, SECONDS, clients=CLIENTS) for _ in range(TURNS)]
            used = processor_seconds(process) - before
            usual = load(port, lines, CALM, rate=SHARE * statistics.median(one.rate for one in loads))
        if any(one.refused or one.others for one in loads):
            raise RuntimeError(f"the service did not answer all: {loads}")
        ordered = sorted(1000 * seconds for seconds in waits)
        middle = statistics.median(ordered)
        spread = (ordered[0], ordered[-1])
        rate, rates_spread = median_spread([one.rate for one in loads])
        taken = 1000 * used / sum(one.answered for one in loads)
        p50, p99 = usual.answered_ms["p50"], usual.answered_ms["p99"]
        calm = {"p50_ms": p50, "p99_ms": p99, "refused": float(usual.refused), "rate": usual.rate}
        wanted = 1000 if kind == "compact" else 600
        client = {"client_ms": statistics.median(one.client_ms for one in loads)}
        ending = "" if kind == "compact" else f"_{kind}"
        percentiles = {f"p{share}_ms": float(np.percentile(ordered, share)) for share in (90, 99)}
        against = "wall clock of the client, connection kept"
        rows += [
            Row(f"serve_p50_ms{ending}", middle, "ms", spread, "<= 10", middle <= 10, against, percentiles),
            Row(f"serve_rps_32{ending}", rate, "requests/s", rates_spread, f">= {wanted}", rate >= wanted, against),
            Row(
                f"serve_cpu_ms{ending}", taken, "ms", (taken, taken), "", None, "processor time of the service", client
            ),
            Row(
                f"serve_p99_70{ending}",
                p99 / p50,
                "x",
                None,
                "<= 3",
                p99 <= 3 * p50 and not usual.refused,
                against,
                calm,
            ),
        ]
    return rows


@contextmanager
def served(run: Path) -> Iterator[tuple[int, int]]:
    """The port and process of a service that lives as long as the block."""
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(run), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(json.loads(process.stdout.readline())["url"].rsplit(":", 1)[1]), process.pid
        finally:
            process.terminate()


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


def processor_seconds(process: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
