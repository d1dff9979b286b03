"""What `recommend` takes for many users: CPU seconds, seconds, memory; what kills leave.

    python -m benchmarks.bulk --run RUN --users 100000 --kills 5

CPU seconds are of the command, start included, and of the commands that were killed; `largest_mb` is its peak.
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
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from adagrpo.pipeline.recommend import PART_USERS
from benchmarks.scale_table import is_over

__all__ = ["main"]

BLOCK = 100_000  # users that are drawn at a time


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0, help="Of the command, at random moments.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BULK_DIR")) as folder:
        users, out = Path(folder) / "users.parquet", Path(folder) / "lists"
        _write_users(users, options.run, options.users)
        command = [sys.executable, "-m", "adagrpo", "recommend", "--run", str(options.run), "--users", str(users)]
        command += ["--out", str(out), "--quiet"]
        stride = max(1, options.users // PART_USERS // (options.kills + 1))
        found = _measured(command, out, kills=options.kills, stride=stride) | _checked(out, options.users)
        print(json.dumps({"users": options.users, "kills": options.kills} | found))


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


def _measured(command: list[str], out: Path, *, kills: int, stride: int) -> dict[str, Any]:
    """Carry a command out, killed so many times at random moments before it may end.

    Args:
        command: the words of it.
        out: the folder that it writes.
        kills: of the command.
        stride: parts that are to be new at a kill, at most.
    """
    draw, cpu, started, largest = random.Random(0), 0.0, time.monotonic(), 0.0
    for last in [False] * kills + [True]:
        parts = len(list(out.glob("part-*.parquet")))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if not last:
            wanted = parts + draw.randint(1, stride)
            while not is_over(process) and len(list(out.glob("part-*.parquet"))) < wanted:
                time.sleep(0.02)
            time.sleep(draw.random())
            os.kill(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (0 if last else -signal.SIGKILL):
            sys.exit(f"{' '.join(command)}: status {process.returncode}; if it ended too soon, take more users")
        cpu += usage.ru_utime + usage.ru_stime
        largest = max(largest, usage.ru_maxrss / 1e3)
    digest = hashlib.sha256()
    for path in sorted(out.glob("part-*.parquet")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    figures = {"cpu_s": round(cpu, 1), "seconds": round(time.monotonic() - started, 1), "largest_mb": round(largest)}
    return figures | {"content": digest.hexdigest()[:16]}


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
