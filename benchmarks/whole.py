"""Whole commands: Beauty from logs to report, and `prepare` on 20 million interactions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.compact import RECIPE
from benchmarks.rows import Row

__all__ = ["beauty_end_to_end", "prepare_20m"]


def beauty_end_to_end(data: Path, work: Path) -> list[Row]:
    """`adagrpo run recipes/amazon-beauty.yaml` with the one arm adagrpo, in a new folder; once, it takes minutes."""
    out = work / "beauty-end-to-end"
    arms = "train.arms=[{objective: adagrpo}]"
    seconds, _ = command("run", str(RECIPE), "--data", str(data / "amazon-beauty"), "--out", str(out), "--set", arms)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    result = metrics["stages"]["adagrpo"]["best"]["test"]
    minutes = seconds / 60
    detail = {"test": {name: result[name] for name in ("hr@10", "ndcg@10", "hallucination@10")}}
    met = minutes <= 15 and result["hr@10"] > 0.0648
    target = "<= 15, past TIGER's R@10 .0648"
    return [Row("beauty_end_to_end_min", minutes, "min", (minutes, minutes), target, met, "wall clock", detail)]


def prepare_20m(data: Path, work: Path) -> list[Row]:
    """`adagrpo prepare` of a Parquet log of 20 million interactions, and of 5 million, for the slope."""
    result = {}
    for millions in (5, 20):
        log = work / f"log-{millions}m.parquet"
        write_log(log, millions * 1_000_000)
        result[millions] = command("prepare", str(log), "--out", str(work / f"prepare-{millions}m"))
        log.unlink()
    (small, _), (seconds, peak) = result[5], result[20]
    detail = {"seconds_5m": small, "times_5m": seconds / small}
    return [
        Row("prepare_20m_s", seconds, "s", (seconds, seconds), "<= 60", seconds <= 60, "wall clock", detail),
        Row("prepare_20m_rss_gb", peak, "GB", (peak, peak), "<= 2", peak <= 2, "peak resident set", {}),
    ]


def write_log(path: Path, rows: int) -> None:
    """Interactions of one user in forty rows, items of a Zipf law, in the order of time."""
    generator = np.random.default_rng(0)
    users = generator.integers(0, rows // 40, rows)
    items = (200_000 * generator.random(rows) ** 3).astype(np.int64)
    times = np.sort(generator.integers(1_600_000_000, 1_700_000_000, rows))
    pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).write_parquet(path)


def command(*arguments: str) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of the program as a process of its own."""
    # a child of its own counts the peak of this command alone
    code = (
        "import resource,subprocess,sys;"
        "done=subprocess.run([sys.executable,'-m','adagrpo',*sys.argv[1:],'--quiet'],stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(done.returncode)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - started, int(done.stdout.split()[-1]) * 1024 / 1e9
