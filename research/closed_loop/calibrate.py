"""Clicks and dwell by position in public logs, for the dials of the simulator.

    python -m research.closed_loop.calibrate --data ../shared/data

KuaiRand shows one video at a time, so its place is that within a session: impressions of a user that are no more than
half an hour apart. open-bandit shows three items at once, drawn at random: what differs by place there is the place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl

from research.command import run

__all__ = ["of_feed", "of_slots"]

GAP_MS = 30 * 60 * 1000
PLACES = 4  # longer sessions are few in the part of the log that there is


def of_feed(impressions: pl.DataFrame) -> list[dict[str, float]]:
    """Click rate and play time by place in a session, the first `PLACES` places."""
    table = impressions.unique(maintain_order=True).sort("user_id", "timestamp", maintain_order=True)
    starts = (pl.col("timestamp").diff() > GAP_MS) | (pl.col("user_id") != pl.col("user_id").shift())
    table = table.with_columns(starts.fill_null(True).cum_sum().alias("session"))
    table = table.with_columns(pl.int_range(pl.len()).over("session").alias("place"))
    longest = table.filter(pl.len().over("session") >= PLACES)  # the same sessions at every place
    seconds = pl.col("play_time_ms").filter("clicked") / 1000
    rows = (
        longest.filter(pl.col("place") < PLACES)
        .group_by("place")
        .agg(
            pl.len().alias("impressions"),
            pl.col("clicked").mean().alias("click_rate"),
            seconds.median().alias("dwell_median"),
            (seconds.filter(seconds > 0).log().std()).alias("dwell_log_deviation"),
        )
    )
    return rows.sort("place").to_dicts()


def of_slots(bandit: pl.DataFrame) -> list[dict[str, float]]:
    """Click rate by slot under the uniform policy."""
    rows = (
        bandit.filter(pl.col("policy") == "random")
        .group_by("position")
        .agg(pl.len().alias("impressions"), pl.col("click").mean().alias("click_rate"))
    )
    return rows.sort("position").to_dicts()


def exponent(rates: list[float]) -> float:
    """The exponent of `(1 / place) ** exponent` that fits click rates by place, by least squares of logarithms."""
    places, logs = np.log(np.arange(1, len(rates) + 1)), np.log(rates)
    return float(-np.polyfit(places, logs, 1)[0])


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    feed = of_feed(pl.read_parquet(data / "kuairand-pure-log" / "impressions.parquet"))
    files = sorted((data / "open-bandit").glob("*.parquet"))
    slots = of_slots(pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed"))
    result = {
        "kuairand_places": feed,
        "kuairand_exponent": exponent([row["click_rate"] for row in feed]),
        "open_bandit_slots": slots,
        "open_bandit_exponent": exponent([row["click_rate"] for row in slots]),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run(main)
