"""Does what a shop shows depend on who comes? And if not, what do clicks on it say of a list?

Item i was shown to user a, j to b, who came next. If what is shown does not depend on the user, it could as well have
been the other way round, so any list prefers what happened in half of such pairs. Items that either had had, or was
shown before, are not paired: a shop hides the former, and who comes often has seen what is shown often.

Where it does not depend on him, clicks on shown items of a user's list, each weighted by one over how often its item
was shown, say what he would click of the list (replay: Li et al. 2011; Swaminathan and Joachims 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from adagrpo.data.columns import ITEM, TIMESTAMP, USER
from adagrpo.statistics import Interval, mean_interval
from adagrpo.types import Floats, Ints

MARGIN = 0.02  # share of pairs above one half that still counts as no dependence
MOST_PAIRS, LEAST = 20_000, 20  # pairs that are compared; fewest pairs of visits for a test


class Exchanges(NamedTuple):
    """`P` pairs of shown items, of two visits each."""

    users: Ints  # (P, 2)
    items: Ints  # (P, 2) that these were shown
    visits: Ints  # (P,) which two visits

    def happened(self, scores: Floats) -> Floats:  # (P, 2, 2) by user and item
        """Return for each two visits the share of pairs in which a list prefers what happened; ties one half."""
        one, other = (
            (own > shown).astype(int) - (own < shown)
            for own, shown in ((scores[:, 0, 0], scores[:, 0, 1]), (scores[:, 1, 1], scores[:, 1, 0]))
        )  # both may be -inf
        _, visit, sizes = np.unique(self.visits, return_inverse=True, return_counts=True)
        return np.asarray(0.5 + np.bincount(visit, np.sign(one + other) / 2) / sizes)


def exchanged(shown: pl.DataFrame, had: pl.DataFrame, generator: np.random.Generator) -> Exchanges:
    """Pair what was first shown (user, item, timestamp) to two users in a row, but for what either knew.

    That is what he `had` (user, item), and what he was shown before: as the other's it would be no first showing.
    """
    ordered = shown.select(USER, ITEM, TIMESTAMP, pl.Series("key", generator.random(len(shown))))
    rows = ordered.sort(TIMESTAMP, USER, "key").with_columns(pl.col(USER).rle_id().cast(pl.Int64).alias("visit"))
    rows = rows.with_columns((pl.col("visit") // 2).alias("pair"))
    of_both = rows.join(rows.select("pair", pl.col(USER).alias("either")).unique(), on="pair")
    before = rows.select(pl.col(USER).alias("either"), ITEM, pl.col("pair").alias("before"))
    known = [
        of_both.join(had, left_on=["either", ITEM], right_on=[USER, ITEM], how="semi"),
        of_both.join(before, on=["either", ITEM]).filter(pl.col("before") < pl.col("pair")),
    ]
    for one in known:
        rows = rows.join(one, on=["pair", ITEM], how="anti")
    rows = rows.sort("visit", "key").with_columns(pl.int_range(pl.len()).over("visit").alias("row"))
    first, second = (rows.filter(pl.col("visit") % 2 == side).select(USER, ITEM, "row", "pair") for side in (0, 1))
    pairs = first.join(second, on=["pair", "row"], suffix="_2").filter(pl.col(ITEM) != pl.col(f"{ITEM}_2"))
    drawn = pl.Series("drawn", generator.permutation(len(shown)))  # by pair, so that visits of all times are compared
    pairs = pairs.with_columns(drawn.gather(pairs["pair"])).sort("drawn", "row").head(MOST_PAIRS)
    users, items = (pairs.select(name, f"{name}_2").to_numpy().astype(np.int64) for name in (USER, ITEM))
    return Exchanges(users, items, pairs["pair"].to_numpy())


def independent(happened: Mapping[str, Floats]) -> tuple[bool, dict[str, Interval]]:
    """Return whether no list tells who was shown what, by `Exchanges.happened` of each, and the intervals.

    It is so where the upper ends of all intervals (Bonferroni) are below one half and `MARGIN`, of `LEAST` at least in
    which each list has a preference: one without any says nothing. What no list knows of a user is not seen.
    """
    level = 1 - 0.05 / max(1, len(happened))
    found = {name: mean_interval(shares, level=level) for name, shares in happened.items() if len(shares) >= LEAST}
    enough = all(np.count_nonzero(shares != 0.5) >= LEAST for shares in happened.values())
    return enough and bool(found) and all(one.high < 0.5 + MARGIN for one in found.values()), found


def weights_of_shown(items: Ints) -> Floats:  # (N,) shown items
    """Return one over how often each item was shown, at most one over the median."""
    _, item, counts = np.unique(items, return_inverse=True, return_counts=True)
    return np.asarray(1 / np.maximum(counts, np.median(counts))[item])
