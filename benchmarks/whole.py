"""Whole commands: Beauty from logs to report, `decide` and `refresh`, and `prepare` on 20 million interactions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.compact import RECIPE
from benchmarks.rows import Row

__all__ = ["beauty_end_to_end", "decide", "prepare_20m"]

NEWEST = 0.01  # of Beauty's interactions, which `refresh` takes in
WORSE = 3  # the status of a refresh whose list is worse than the one that is served, which stays


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


def decide(data: Path, work: Path) -> list[Row]:
    """`adagrpo decide`, from files to the table, of a simulated shop and of Beauty's older rows; then `refresh`."""
    shop = work / "shop"
    command("simulate", "--users", "3000", "--items", "800", "--out", str(shop))
    files = (str(shop / "logs.parquet"), "--items", str(shop / "items.parquet"))
    of_shop, peak_of_shop = command("decide", *files, "--out", str(work / "of-shop"))
    rows = timed_rows(data / "amazon-beauty" / "interactions.parquet")
    newest, logs = int(NEWEST * len(rows)), (work / "older.parquet", work / "newer.parquet")
    rows[:-newest].write_parquet(logs[0])
    rows[-newest:].write_parquet(logs[1])
    items, run = str(data / "amazon-beauty" / "items.parquet"), work / "of-beauty"
    of_beauty, peak_of_beauty = command("decide", str(logs[0]), "--items", items, "--out", str(run))
    refresh, peak = command("refresh", "--run", str(run), str(logs[1]), ends=(0, WORSE))
    decision = json.loads((run / "decision.json").read_text(encoding="utf-8"))
    shown = pl.scan_parquet(shop / "logs.parquet").select(pl.len()).collect().item()
    share, clock = refresh / of_beauty, "wall clock"
    return [
        Row(
            "decide_shop_s",
            of_shop,
            "s",
            (of_shop, of_shop),
            "<= 120",
            of_shop <= 120,
            clock,
            {"impressions": shown, "peak_gb": peak_of_shop},
        ),
        Row(
            "decide_beauty_min",
            of_beauty / 60,
            "min",
            (of_beauty / 60, of_beauty / 60),
            "<= 10",
            of_beauty <= 600,
            clock,
            {"chosen": decision["chosen"], "peak_gb": peak_of_beauty},
        ),
        Row(
            "refresh_beauty_share",
            share,
            "share",
            None,
            "<= 0.2",
            share <= 0.2,
            "decide of Beauty",
            {"seconds": refresh, "peak_gb": peak},
        ),
    ]


def timed_rows(interactions: Path) -> pl.DataFrame:
    """Beauty's rows by time: the file has positions alone, so each user's are spread evenly over a year from a draw."""
    rows, generator = pl.read_parquet(interactions), np.random.default_rng(0)
    begins = pl.Series(generator.random(rows["user_id"].max() + 1))[rows["user_id"]]
    of_year = (pl.col("position") + begins) / (pl.col("position").max().over("user_id") + 1)
    times = rows.with_columns(timestamp=1_600_000_000 + (of_year * 365 * 86_400).cast(pl.Int64))
    return times.sort("timestamp", maintain_order=True).select("user_id", "item_id", "timestamp")


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


def command(*arguments: str, ends: Sequence[int] = (0,)) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of the program as a process of its own; `ends` are what it may end with."""
    # a child of its own counts the peak of this command alone
    code = (
        "import resource,subprocess,sys;"
        "done=subprocess.run([sys.executable,'-m','adagrpo',*sys.argv[1:],'--quiet'],stdout=sys.stderr);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(done.returncode)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode not in ends:
        done.check_returncode()
    return time.perf_counter() - started, int(done.stdout.split()[-1]) * 1024 / 1e9
