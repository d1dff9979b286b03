"""Row 12, its second half: the exposure log is killed while it acknowledges answers and makes parts.

A child process writes answers from many threads, as a service does, and says of each id which list is on record. What
it did not say before it was killed is asked for again, as clients do, with another list. In the end every id has one
row, and that is the list that was acknowledged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from adagrpo.exposures.exposure_log import Exposure
from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of, read_parts, rotate
from benchmarks.reliability.findings import Finding

__all__ = ["answers_a_second", "kill_log"]

THREADS, PART = 32, 700  # answers of a part: small, so that kills meet one that is being made


def answer(name: str, salt: int) -> Exposure:
    """An answer of ten items; its first item tells who wrote it."""
    return Exposure(
        request_id=name,
        time=time.time(),
        slate=(salt, *range(100, 109)),
        arm="adagrpo/best",
        model_version="0123456789ab",
        catalog_version="0123456789ab",
        user_hash="0123456789abcdef0123456789abcdef",
        key_version="0123456789ab",
        latency_ms=4.2,
    )


def child(directory: Path, salt: int, names: Sequence[str]) -> None:
    """Write answers, and say of each the list that is on record."""
    log = LocalExposureLog(directory, rotate_rows=PART)

    def write(name: str) -> None:
        (recorded,) = log.write([answer(name, salt)])
        os.write(1, f"{name} {recorded.slate[0]}\n".encode())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, names))
    log.close()


def kill_log(work: Path, answers: int = 10_000, kills: int = 5, seed: int = 0) -> Finding:
    """Kill the child at random answers until it was killed often enough, then let it finish."""
    draw = np.random.default_rng(seed)
    wanted, told, done = [f"r{number}" for number in range(answers)], dict[str, int](), 0
    again = twice = 0
    for salt in range(kills + 1):
        names = [name for name in wanted if name not in told]
        command = [sys.executable, "-m", "benchmarks.reliability.exposures", str(work / "log"), str(salt)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(process, names))
        feeder.start()
        last = int(draw.integers(answers // 20, answers // (kills + 1))) if salt < kills else answers
        for place, line in enumerate(process.stdout):
            if not line.endswith("\n"):
                break  # cut by the kill
            name, of = line.split()
            twice += name in told
            again += int(of) != salt  # written before a kill and not told
            told[name] = int(of)
            if place == last:
                os.kill(process.pid, signal.SIGKILL)
        feeder.join()
        done += process.wait() == -signal.SIGKILL
    rotate(work / "log")
    parts = parts_of(work / "log")
    table, _ = read_parts(parts)
    rows = dict(zip(table["request_id"], table["slate"].list.first().cast(int), strict=True))
    one_each = len(table) == len(rows) == answers and rows == told and not twice
    figure = (
        f"of the log alone: {done} kills in {answers:,} acknowledged answers over {len(parts)} parts:"
        f" {len(table):,} rows,"
        f" {sum(rows.get(name) == of for name, of in told.items()):,} of them the list that was acknowledged;"
        f" {again} retries were answered from the log"
    )
    return Finding(12, figure, one_each and done == kills)


def answers_a_second(directory: Path, answers: int = 20_000, threads: int = 32) -> tuple[float, float, float]:
    """How fast one process logs while parts are made, and the median and 99th percentile of a call, in ms."""
    log = LocalExposureLog(directory, rotate_rows=5_000)
    waited = list[float]()

    def write(number: int) -> None:
        begun = time.perf_counter()
        log.write([answer(f"r{number}", 0)])
        waited.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(answers)))
    rate = answers / (time.perf_counter() - begun)
    log.close()
    return rate, *(1000 * float(np.quantile(waited, share)) for share in (0.5, 0.99))


def _feed(process: subprocess.Popen[str], names: Sequence[str]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write("\n".join(names))
        process.stdin.close()
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]), sys.stdin.read().split())
