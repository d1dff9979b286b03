"""Row 6: bad rows among many, and the memory that reading takes as a file grows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl

from adagrpo.data.logs.interactions import Columns, Refusals, read_logs
from benchmarks.reliability.bad_rows import AFTER, ITEMS, KINDS, write_log
from benchmarks.reliability.findings import Finding

__all__ = ["bad_rows", "check_log"]

FORMATS = ("csv", "jsonl", "parquet")
REFUSE = Refusals(pl.Series([f"i{n}" for n in range(ITEMS)]), AFTER, repeats=True)


def bad_rows(work: Path, rows: int = 100_000, bad: int = 1000) -> Finding:
    """Read a log of each format, and ones of a long text column whose file grows fourfold."""
    work.mkdir(parents=True, exist_ok=True)
    whole = [check_log(work / f"log.{suffix}", rows, bad) for suffix in FORMATS]
    small, large = (peak(work, megabytes) for megabytes in (50, 200))
    figure = (
        f"{sum(whole)} of {len(FORMATS)} formats: {rows:,} read = {rows - bad:,} accepted + {bad:,} rejected, "
        f"each for its reason ({len(KINDS)} kinds); "
        f"peak memory {small:.0f} MB for a CSV of 50 MB, {large:.0f} MB for 200 MB"
    )
    return Finding(6, figure, all(whole) and large - small < 50)


def check_log(path: Path, rows: int, bad: int, seed: int = 0) -> bool:
    """Whether exactly the bad rows of a log are rejected, each for its reason, and nothing is lost."""
    written = write_log(path, rows, bad, seed)
    logs = read_logs([path], Columns(), max_bad_rows=bad, refuse=REFUSE)
    reasons = dict(zip(logs.rejects["row"] - 1, logs.rejects["reason"], strict=True))  # rows are counted from 1
    return (
        logs.rows_read == rows == len(logs.interactions) + len(logs.rejects)
        and sorted(reasons) == sorted(written.bad)
        and all(KINDS[kind][1] in reasons[row] for row, kind in written.bad.items())
        and set(logs.rejects["file"]) == {str(path)}
        and logs.interactions.rows() == written.good
    )


def peak(work: Path, megabytes: int) -> float:
    """Peak resident megabytes of a process that reads a CSV of mostly a text that nobody asks for."""
    path = work / f"wide-{megabytes}.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id,item_id,timestamp,note\n")
        for n in range(megabytes * 1000):
            file.write(f"{n % 5000},{n % 777},{n},{'x' * 980}\n")
    code = (
        "import sys;from pathlib import Path;from adagrpo.data.logs.interactions import Columns, read_logs;"
        "read_logs([Path(sys.argv[1])], Columns());"
        # not getrusage, whose peak would be that of the process that started this one
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, check=True)
    path.unlink()
    return int(done.stdout) * 1024 / 1e6
