"""Items shown at random (user, item, clicked), to evaluate lists (`adagrpo.pipeline.random_judge`) alone.

Pairs of the user's log or impressions are dropped, as training knows them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import CLICKED, ITEM, ITEM_ID, USER, USER_ID
from adagrpo.data.exposures import PAIR, once
from adagrpo.data.logs.interactions import Logs
from adagrpo.errors import UserError

RANDOM = "random.parquet"
LOGGED = ("train.parquet", "validation.parquet", "test.parquet", "later.parquet", "impressions.parquet")


def random_exposures(shown: Logs, directory: Path) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the distinct user, item, clicked, numbered as in a prepared log, and counts.

    Raises:
        UserError: no clicks, or no usable exposures.
    """
    if shown.impressions is None:
        raise UserError("data.random: no column says what was clicked; name it, data.random.columns.clicked=NAME")
    table = once(shown.impressions).with_columns(pl.col(PAIR).cast(pl.String))
    users = pl.read_parquet(directory / "users.parquet", columns=[USER, USER_ID]).cast({USER_ID: pl.String})
    items = pl.read_parquet(directory / "items.parquet", columns=[ITEM, ITEM_ID]).cast({ITEM_ID: pl.String})
    known = table.join(users, on=USER_ID).join(items, on=ITEM_ID).select(USER, ITEM, CLICKED)
    there = [path for name in LOGGED if (path := directory / name).is_file()]
    logged = pl.concat(pl.scan_parquet(path).select(USER, ITEM) for path in there)
    logged_pairs = logged.join(known.lazy(), on=[USER, ITEM], how="semi").collect()
    kept = known.join(logged_pairs, on=[USER, ITEM], how="anti").sort(USER, ITEM)
    if kept.is_empty():
        raise UserError(
            f"data.random: judges nothing: of {len(table):,} items shown at random {len(table) - len(known):,} are of"
            " unknown users or items, and the others stand in the logs or impressions"
        )
    return kept, {
        "random_exposures": len(kept),
        "random_clicks": int(kept[CLICKED].sum()),
        "random_exposures_unknown": len(table) - len(known),
        "random_exposures_logged": len(known) - len(kept),
        "random_clicks_logged": int(known[CLICKED].sum()) - int(kept[CLICKED].sum()),
    }


def telling(shown: pl.DataFrame, lengths: NDArray[np.int64], most: int, generator: np.random.Generator) -> pl.DataFrame:
    """Return exposures of users with a history who clicked some items and skipped others, by user and item.

    Args:
        lengths: (U,) history lengths.
        most: maximum number of users, sampled.
    """
    of_both = shown.group_by(USER).agg(pl.col(CLICKED).any() & ~pl.col(CLICKED).all()).filter(CLICKED)[USER]
    users = of_both.sort().to_numpy()
    drawn = generator.permutation(users[lengths[users] > 0])[:most]
    return shown.filter(pl.col(USER).is_in(drawn.tolist())).sort(USER, ITEM)
