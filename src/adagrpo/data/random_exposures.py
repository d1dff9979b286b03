"""What was shown at random beside a log with an order: a user, an item, and whether it was clicked.

Nothing is fitted on it: it judges lists (`adagrpo.pipeline.random_judge`), since what it shows no list and no platform
chose. What a user's log holds is left out, clicked or not: training would know the answer, and held-out items would
have a part in the choice.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from adagrpo.data.columns import CLICKED, ITEM, ITEM_ID, USER, USER_ID
from adagrpo.data.exposures import PAIR, once
from adagrpo.data.logs.interactions import Logs
from adagrpo.errors import UserError

RANDOM = "random.parquet"
LOGGED = ("train.parquet", "validation.parquet", "test.parquet", "later.parquet")


def write_random(shown: Logs, directory: Path) -> dict[str, int]:
    """Write random.parquet: user, item, clicked, in the numbers of a prepared log; each pair once.

    Args:
        shown: of `read_logs`, with clicks.
        directory: of `write_prepared`.

    Returns:
        Counts for its summary.

    Raises:
        UserError: the logs do not say what was clicked.
    """
    if shown.impressions is None:
        raise UserError("data.random: no column says what was clicked; name it, data.random.columns.clicked=NAME")
    table = once(shown.impressions).with_columns(pl.col(PAIR).cast(pl.String))
    users = pl.read_parquet(directory / "users.parquet", columns=[USER, USER_ID]).cast({USER_ID: pl.String})
    items = pl.read_parquet(directory / "items.parquet", columns=[ITEM, ITEM_ID]).cast({ITEM_ID: pl.String})
    known = table.join(users, on=USER_ID).join(items, on=ITEM_ID).select(USER, ITEM, CLICKED)
    logged = pl.concat(pl.scan_parquet(directory / name).select(USER, ITEM) for name in LOGGED)
    logged_pairs = logged.join(known.lazy(), on=[USER, ITEM], how="semi").collect()
    kept = known.join(logged_pairs, on=[USER, ITEM], how="anti").sort(USER, ITEM)
    kept.write_parquet(directory / RANDOM)
    return {
        "random_exposures": len(kept),
        "random_clicks": int(kept[CLICKED].sum()),
        "random_exposures_unknown": len(table) - len(known),
        "random_exposures_logged": len(known) - len(kept),
        "random_clicks_logged": int(known[CLICKED].sum()) - int(kept[CLICKED].sum()),
    }
