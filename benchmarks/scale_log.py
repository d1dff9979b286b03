"""A log of any size, in streamed Parquet parts: Zipf popularity within clusters, sequences that stay in a few clusters.

The simulated marketplace draws slates and keeps a truth, which costs ten impressions an interaction. Where only the
cost of reading, fitting and serving is asked, interactions alone do:

    cluster of position t of user u    one of three favourites of u, or any, with probability EXPLORE
    item within the cluster            rank r with probability proportional to (r + SHIFT) ** -EXPONENT

Users are drawn in chunks, and each chunk is written as a part in the order of time, so that memory does not grow with
the log. Equal arguments give equal files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["LENGTH", "write_codes", "write_items", "write_parts"]

LENGTH = 50  # mean interactions of a user; at least 5
EXPLORE = 0.2
EXPONENT, SHIFT = 0.8, 10.0
CLUSTER = 500  # items of a cluster, about
PART = 50_000  # users of a part
SPAN = 90 * 86_400  # seconds that the log spans

Ints = NDArray[np.int64]


def write_parts(directory: Path, *, rows: int, items: int, seed: int = 0) -> list[str]:
    """Write the parts of a log of about so many rows; their names."""
    users, names = max(2, rows // LENGTH), list[str]()
    clusters, cumulative = _law(items)
    for part, first in enumerate(range(0, users, PART)):
        generator = np.random.default_rng([seed, part])
        count = min(PART, users - first)
        lengths = 5 + generator.poisson((LENGTH - 5) * generator.gamma(2.0, 0.5, count))
        owners = np.repeat(np.arange(count), lengths)
        places = generator.integers(0, 3, len(owners))
        cluster = generator.integers(0, clusters, (count, 3))[owners, places]
        anywhere = generator.random(len(owners)) < EXPLORE
        cluster[anywhere] = generator.integers(0, clusters, int(anywhere.sum()))
        rank = np.searchsorted(cumulative, generator.random(len(owners)))
        item = rank * clusters + cluster  # a cluster is the items of one remainder, popular ones first
        moment = generator.integers(0, SPAN, len(owners))
        order = np.argsort(moment, kind="stable")
        columns = {"user_id": first + owners, "item_id": item.clip(max=items - 1), "timestamp": moment + 1_700_000_000}
        names.append(f"log-{part:04}.parquet")
        pl.DataFrame({name: column[order] for name, column in columns.items()}).write_parquet(directory / names[-1])
    return names


def write_items(directory: Path, items: int) -> str:
    """Write the item table: a title and two attributes each, the cluster among them; its name."""
    clusters, _ = _law(items)
    number = np.arange(items)
    cluster, style = number % clusters, (number // clusters) % 7
    table = pl.DataFrame({"item_id": number, "cluster": cluster, "style": style}).select(
        "item_id",
        title=pl.format("thing of kind {} in style {}", "cluster", "style"),
        attributes=pl.concat_list(pl.format("kind {}", "cluster"), pl.format("style {}", "style")),
    )
    table.write_parquet(directory / "items.parquet")
    return "items.parquet"


def write_codes(directory: Path, items: int) -> str:
    """Write Semantic IDs of three levels of 256 codes, each of one item; items with a common first code mean nothing.

    Their number times an odd one, modulo 2^24, is another one for each of up to 2^24 items.
    """
    numbers = np.arange(items, dtype=np.int64) * 0x9E3779 % 2**24
    codes = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], axis=1)
    table = pl.DataFrame({"item_id": np.arange(items), "sid": codes})
    table.with_columns(pl.col("sid").arr.to_list()).write_parquet(directory / "codes.parquet")
    return "codes.parquet"


def _law(items: int) -> tuple[int, NDArray[np.float64]]:
    """How many clusters there are, and the cumulative probabilities of the ranks of one."""
    clusters = max(4, items // CLUSTER)
    ranks = -(-items // clusters)
    mass = (np.arange(ranks) + SHIFT) ** -EXPONENT
    cumulative: NDArray[np.float64] = np.cumsum(mass) / mass.sum()
    return clusters, cumulative
