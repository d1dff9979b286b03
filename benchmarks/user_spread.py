"""How much users differ in what an experiment would measure, for the example of docs/how-to/ab.md.

python -m benchmarks.user_spread ../shared/data/kuairand-pure-log/impressions.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["spread"]


def spread(path: Path) -> dict[str, tuple[float, float]]:
    """Mean and deviation of a user's clicks, click-through (delta method) and seconds, after repeated rows are out."""
    rows = pl.read_parquet(path).unique()
    users = rows.group_by("user_id").agg(
        shown=pl.len(), clicks=pl.col("clicked").sum(), seconds=pl.col("play_time_ms").sum() / 1000
    )
    found = {}
    for name, over, below in (("views", "clicks", None), ("ctr", "clicks", "shown"), ("dwell", "seconds", None)):
        numbers = users[over].to_numpy().astype(float)
        divisors = np.ones(len(users)) if below is None else users[below].to_numpy().astype(float)
        mean = numbers.mean() / divisors.mean()
        found[name] = (float(mean), float(np.std(numbers - mean * divisors, ddof=1) / divisors.mean()))
    print(f"{len(users):,} users")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("impressions", type=Path)
    for name, (mean, deviation) in spread(parser.parse_args().impressions).items():
        print(f"{name}: mean {mean:.4g}, deviation {deviation:.4g}")
