"""Lists that are counted from a shop's files, for each case from what was before it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from research.worlds.simulators import DAY

WINDOW = 7 * DAY
SMOOTHING = 20.0  # showings at the shop's own rate that are added to each item's
LENGTH = 10

Ints = NDArray[np.int64]
Values = NDArray[np.float64]


class Log(NamedTuple):
    """Rows of a file in the order of time."""

    items: Ints  # (N,)
    times: Ints  # (N,)
    clicked: Values  # (N,) 1 or 0

    def before(self, time: int) -> Log:
        """The rows that are earlier."""
        return Log(*(column[: np.searchsorted(self.times, time)] for column in self))


def references(
    files: Mapping[str, pl.DataFrame], users: pl.Series, *, exclude_history: bool
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """Each user's lists just before their last purchase, or click where there are no orders.

    Args:
        files: of a shop.
        exclude_history: leave out what the user has had.

    Returns:
        What each user then took (user_id, item_id), and lists by name, with a rank too: `recent`, purchases of the last
        seven days; `ctr`, the smoothed click-through rate, where slates were logged; `own`, the user's most frequent
        items, where lists may hold those.
    """
    items, slates = files["items.csv"]["item"], files.get("impressions.csv")
    shown = None if slates is None else _log(slates, items)
    orders = files["orders.csv"] if "orders.csv" in files else files["impressions.csv"].filter(pl.col("clicked") == 1)
    taken, rows_of = _log(orders, items), orders.with_row_index().group_by("user", maintain_order=True).agg("index")
    rows = dict(rows_of.iter_rows())
    best: dict[str, list[Ints]] = {}
    for user in users:
        history = np.array(rows[user][:-1])
        now = int(taken.times[rows[user][-1]])
        earlier = taken.before(now)
        popular = _counts(earlier.items, items)
        scores = {"recent": _counts(earlier.items[np.searchsorted(earlier.times, now - WINDOW) :], items)}
        if shown is not None:
            seen = shown.before(now)
            rate = seen.clicked.sum() / max(1, len(seen.items))
            clicks, times_shown = _counts(seen.items, items, seen.clicked), _counts(seen.items, items)
            scores["ctr"] = (clicks + SMOOTHING * rate) / (times_shown + SMOOTHING)
        if not exclude_history:
            scores["own"] = _counts(taken.items[history[taken.times[history] < now]], items)
        for name, values in scores.items():
            order = values + 1e-9 * popular  # which is for ties
            if exclude_history:
                order[taken.items[history]] = -np.inf
            best.setdefault(name, []).append(np.argsort(-order, kind="stable")[:LENGTH])
    lists = {
        name: pl.DataFrame(
            {
                "user_id": users.gather(np.repeat(np.arange(len(users)), LENGTH)),
                "item_id": items.gather(np.concatenate(found)),
                "rank": np.tile(np.arange(1, LENGTH + 1), len(users)),
            }
        )
        for name, found in best.items()
    }
    last = orders.group_by(pl.col("user").alias("user_id"), maintain_order=True).agg(
        pl.col("item").last().alias("item_id")
    )
    return last.filter(pl.col("user_id").is_in(users.implode())), lists


def _log(table: pl.DataFrame, items: pl.Series) -> Log:
    columns = table["item"].replace_strict(items, range(len(items)), return_dtype=pl.Int64), table["time"]
    clicked = table["clicked"] if "clicked" in table.columns else pl.Series(np.ones(len(table)))
    return Log(*(column.to_numpy() for column in columns), clicked.to_numpy().astype(np.float64))


def _counts(rows: Ints, items: pl.Series, weights: Values | None = None) -> Values:
    return np.bincount(rows, weights, minlength=len(items)).astype(np.float64)
