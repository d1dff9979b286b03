"""What `prepare` and `recommend` take on many rows, by executor: CPU seconds, seconds, memory; what kills leave.

    python -m benchmarks.bulk prepare --rows 1000000 --executors serial,processes
    python -m benchmarks.bulk prepare --rows 1000000 --executors serial,processes --kill-workers 2
    python -m benchmarks.bulk recommend --run RUN --users 100000 --executors serial --kills 5

Each measurement is a command of its own, and prints a line of JSON. CPU seconds are of the command and all its workers,
start included, and of the commands that were killed; `largest_mb` is the peak of the largest process, `together_mb`
that of all of them, looked at ten times a second. What the executors write is held against each other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.pipeline.recommend import PART_USERS
from benchmarks.scale_table import is_over

__all__ = ["main"]

INTERACTIONS_OF_A_USER = 20
BLOCK = 100_000  # users that are drawn at a time
STARTED = 2.0  # seconds of processor time after which a worker has something in hand
WORDS = [sys.executable, "-m", "adagrpo"]


def main() -> None:
    """Measure, a line for each executor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=["prepare", "recommend"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--core", type=int, default=1, help="Interactions that a user and an item must have.")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--executors", default="serial,processes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0, help="Of the command, at random moments.")
    parser.add_argument("--kill-workers", type=int, default=0, help="So many of those of `processes`, at work.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BULK_DIR")) as folder:
        measure = _prepare if options.verb == "prepare" else _recommend
        found = [*measure(Path(folder), options)]
        for line in found:
            print(json.dumps(line))
        if len({line["content"] for line in found}) > 1:
            sys.exit("the executors wrote different files")


def _prepare(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    log = folder / "log.parquet"
    _write_log(log, options.rows)
    for kind in options.executors.split(","):
        out = folder / kind
        command = [*WORDS, "prepare", str(log), "--out", str(out), "--quiet"]
        settings = {"executor.kind": kind, "executor.workers": options.workers}
        settings |= {"min_user_interactions": options.core, "min_item_interactions": options.core}
        for key, value in settings.items():
            command += ["--set", f"data.{key}={value}"]
        files = "prepare/*.parquet"
        yield {"verb": "prepare", "rows": options.rows, "core": options.core, "executor": kind} | _measured(
            command, out, files, kill_workers=options.kill_workers if kind == "processes" else 0
        )


def _recommend(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    users = folder / "users.parquet"
    _write_users(users, options.run, options.users)
    for kind in options.executors.split(","):
        out = folder / kind
        command = [*WORDS, "recommend", "--run", str(options.run), "--users", str(users), "--out", str(out)]
        command += ["--executor", kind, "--workers", str(options.workers), "--quiet"]
        line = {"verb": "recommend", "users": options.users, "executor": kind, "kills": options.kills}
        stride = max(1, options.users // PART_USERS // (options.kills + 1))
        found = _measured(command, out, "part-*.parquet", kills=options.kills, stride=stride)
        yield line | found | _checked(out, options.users)


def _write_log(path: Path, rows: int) -> None:
    """Interactions of users and items of whom few have many, in the order of time."""
    rng = np.random.default_rng(0)
    users = max(2, rows // INTERACTIONS_OF_A_USER)
    items = max(2, rows // 100)
    table = pl.DataFrame(
        {
            "user_id": (rng.beta(0.6, 2.0, rows) * users).astype(np.int64),
            "item_id": (rng.beta(0.3, 3.0, rows) * items).astype(np.int64),
            "timestamp": np.sort(rng.integers(1_600_000_000, 1_700_000_000, rows)),
        }
    )
    table.with_columns(pl.format("u{}", "user_id").alias("user_id")).write_parquet(path)


def _write_users(path: Path, run: Path, count: int) -> None:
    """Users with histories of a logged length, of items that the run knows; a block of them is in memory at a time."""
    rng = np.random.default_rng(0)
    ids = pl.read_parquet(run / "prepare/items.parquet")["item_id"]
    lengths = pl.read_parquet(run / "prepare/train.parquet").group_by("user").len()["len"].to_numpy()
    blocks = []
    for first in range(0, count, BLOCK):
        drawn = rng.choice(lengths, min(BLOCK, count - first))
        items = ids.gather(rng.integers(0, len(ids), int(drawn.sum())))
        rows = pl.DataFrame({"row": np.repeat(np.arange(len(drawn)) + first, drawn), "history": items})
        grouped = rows.group_by("row", maintain_order=True).agg("history")
        blocks.append(path.with_name(f"block-{first:09d}.parquet"))
        grouped.select(pl.format("g{}", "row").alias("user_id"), "history").write_parquet(blocks[-1])
    pl.scan_parquet(blocks).sink_parquet(path)
    for block in blocks:
        block.unlink()


def _measured(
    command: list[str], out: Path, files: str, *, kills: int = 0, stride: int = 1, kill_workers: int = 0
) -> dict[str, Any]:
    """Carry a command out, killed so many times at random moments before it may end; its workers die under it.

    Args:
        command: the words of it.
        out: the folder that it writes.
        files: those of the folder that count.
        kills: of the command.
        stride: files that are to be new at a kill, at most.
        kill_workers: of its workers.
    """
    draw, cpu, started, largest, together = random.Random(0), 0.0, time.monotonic(), 0.0, 0.0
    for _ in range(kills):
        parts = len(list(out.glob(files)))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = parts + draw.randint(1, stride)
        while not is_over(process) and len(list(out.glob(files))) < wanted:
            time.sleep(0.02)
        time.sleep(draw.random())
        os.kill(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not os.WIFSIGNALED(status):
            sys.exit(f"{' '.join(command)}: ended before it could be killed; take more of it")
        cpu += usage.ru_utime + usage.ru_stime
        largest = max(largest, usage.ru_maxrss / 1e3)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    killed = set[int]()
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        sizes = _resident(process.pid)
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        if len(killed) < kill_workers:
            killed |= _kill_at_work(process.pid, killed)
        time.sleep(0.1)
    if status:
        sys.exit(f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}")
    cpu += usage.ru_utime + usage.ru_stime
    digest = hashlib.sha256()
    for path in sorted(out.glob(files)):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    seconds = time.monotonic() - started
    figures = {"cpu_s": round(cpu, 1), "seconds": round(seconds, 1)}
    figures |= {"largest_mb": round(max(largest, usage.ru_maxrss / 1e3)), "together_mb": round(together)}
    if len(killed) < kill_workers:
        sys.exit(f"{len(killed)} of {kill_workers} workers could be killed; take more rows")
    return figures | {"killed_workers": len(killed), "content": digest.hexdigest()[:16]}


def _kill_at_work(process: int, before: set[int]) -> set[int]:
    """Kill a worker that has worked for longer than a start takes; its number."""
    for path in Path(f"/proc/{process}/task/{process}").glob("children"):
        for one in map(int, path.read_text().split()):
            with suppress(OSError, IndexError):
                ticks = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13]
                if one not in before and sum(map(int, ticks)) > STARTED * os.sysconf("SC_CLK_TCK"):
                    os.kill(one, signal.SIGKILL)
                    return {one}
    return set()


def _resident(process: int) -> list[float]:
    """MB of a process and of all below it."""
    found, waiting = [], [process]
    while waiting:
        one = waiting.pop()
        try:
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except (OSError, IndexError):
            continue
        found.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return found


def _checked(out: Path, users: int) -> dict[str, Any]:
    """That each user has one row, in the order of the file."""
    found = pl.read_parquet(out / "part-*.parquet", columns=["user_id"])["user_id"]
    wanted = [f"g{row}" for row in range(users)]
    return {
        "lost": len({*wanted} - {*found}),
        "twice": len(found) - found.n_unique(),
        "in_order": found.to_list() == wanted,
    }


if __name__ == "__main__":
    main()
