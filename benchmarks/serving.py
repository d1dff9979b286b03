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
from typing import NamedTuple

import numpy as np

from adagrpo.data.prepared import load_item_ids
from adagrpo.lists.names import FUSE, FUSE_WITHOUT_REWARD
from adagrpo.pipeline.make import make
from adagrpo.pipeline.stage_table import list_stages
from benchmarks.compact import models_of
from benchmarks.rows import Row, median_spread
from benchmarks.wire import as_request, load

__all__ = ["serving"]

ALONE, WARMUP = 400, 100  # requests one at a time, after those that warm up
CLIENTS, SECONDS, TURNS = 32, 3.0, 5
SHARE, CALM = 0.7, 20.0  # of the rate of 32 clients, for so many seconds
# LambdaRank as the reward; its model is what a list costs, not how well the sequential ranker is fitted
RANKED = ("reward.kind=lambdarank", "ranker.fit.epochs=2")


class _Served(NamedTuple):
    """A list that is measured: how its rows end, the run's policy and settings, and what it has to reach."""

    ending: str
    policy: str
    settings: tuple[str, ...] = ()
    name: str = "sft"
    p50: float = 10.0  # milliseconds
    rate: float = 600.0  # lists a second


LISTS = (
    _Served("", "compact", rate=1000),
    _Served("_hybrid", "hybrid"),
    _Served("_fused", "hybrid", RANKED, FUSE_WITHOUT_REWARD, 7, 400),
    _Served("_fused_trees", "hybrid", RANKED, FUSE, 7, 300),
)


def serving(data: Path, work: Path) -> list[Row]:
    """One request at a time, 32 clients that each ask again when answered, and 70 % of that; Beauty, beam 50."""
    return [row for one in LISTS for row in _rows(data, work, one)]


def _rows(data: Path, work: Path, one: _Served) -> list[Row]:
    folder = work / ("fused" if one.settings else one.policy)
    models = models_of(data, folder, one.policy, *one.settings)
    if one.name in (FUSE, FUSE_WITHOUT_REWARD):
        models.run.ranker()
        for name, declare in list_stages(one.name, models.config).items():
            if not name.startswith("evaluate/"):
                make(models.run, name, declare(models.run))
    names, cases = load_item_ids(models.data.prepared).to_list(), models.data.cases("test")
    chosen = np.random.default_rng(0).choice(len(cases), 2000, replace=False)
    bodies = [{"history": [names[item] for item in cases.histories.row(row)], "k": 10} for row in chosen]
    lines = folder / "bodies.jsonl"
    lines.write_text("".join(json.dumps(body) + "\n" for body in bodies), encoding="utf-8")
    with served(models.run.directory, "--arm", one.name) as (port, process):
        before = processor_seconds(process)
        waits = asyncio.run(one_at_a_time(port, [as_request(body, "/recommend") for body in bodies]))
        alone = 1000 * (processor_seconds(process) - before) / (WARMUP + ALONE)
        load(port, lines, SECONDS, clients=CLIENTS)
        loads, taken = [], []
        for _ in range(TURNS):
            before = processor_seconds(process)
            loads.append(load(port, lines, SECONDS, clients=CLIENTS))
            taken.append(1000 * (processor_seconds(process) - before) / max(1, loads[-1].answered))
        usual = load(port, lines, CALM, rate=SHARE * statistics.median(turn.rate for turn in loads))
    if any(turn.refused or turn.others for turn in loads):
        raise RuntimeError(f"the service did not answer all: {loads}")
    ordered = sorted(1000 * seconds for seconds in waits)
    middle = statistics.median(ordered)
    rate, rates_spread = median_spread([turn.rate for turn in loads])
    processor, processor_spread = median_spread(taken)
    p50, p99 = usual.answered_ms["p50"], usual.answered_ms["p99"]
    calm = {"p50_ms": p50, "p99_ms": p99, "refused": float(usual.refused), "rate": usual.rate}
    beside = {"client_ms": statistics.median(turn.client_ms for turn in loads), "one_at_a_time_ms": alone}
    percentiles = {f"p{share}_ms": float(np.percentile(ordered, share)) for share in (90, 99)}
    against = "wall clock of the client, connection kept"
    held = p99 <= 3 * p50 and not usual.refused
    return [
        Row(
            f"serve_p50_ms{one.ending}",
            middle,
            "ms",
            (ordered[0], ordered[-1]),
            f"<= {one.p50:g}",
            middle <= one.p50,
            against,
            percentiles,
        ),
        Row(
            f"serve_rps_32{one.ending}",
            rate,
            "requests/s",
            rates_spread,
            f">= {one.rate:g}",
            rate >= one.rate,
            against,
        ),
        Row(
            f"serve_cpu_ms{one.ending}",
            processor,
            "ms",
            processor_spread,
            "",
            None,
            "processor time of the service, 32 clients",
            beside,
        ),
        Row(f"serve_p99_70{one.ending}", p99 / p50, "x", None, "<= 3", held, against, calm),
    ]


@contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[int, int]]:
    """The port and process of a service that lives as long as the block."""
    command = [sys.executable, "-m", "adagrpo", "serve", "--run", str(run), "--port", "0", "--json", *options]
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
