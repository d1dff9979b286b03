"""Shuffle ties: interactions whose order the logs do not know.

Logs exact to the day often order a day by item id, which a model can learn and be rewarded for. Ties are equal
timestamps, or else maximal ascending runs of the sorting column (public Amazon files: ASIN within a day). A run may
join several days, so results on shuffled data are a lower bound.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM_ID, POSITION, TIMESTAMP, USER
from adagrpo.data.dataset import Dataset
from adagrpo.data.logs.cells import blank_to_null, id_texts, numbers
from adagrpo.data.logs.chunks import read_table
from adagrpo.data.logs.unpacking import MAX_EXPANSION
from adagrpo.errors import UserError


def shuffle_ties(
    dataset: Dataset,
    *,
    seed: int,
    table: Path | None = None,  # item table that holds `column`
    id_column: str = ITEM_ID,
    column: str | None = None,  # that sorted the ties; None: ties are equal timestamps
    max_expansion: float = MAX_EXPANSION,
) -> Dataset:
    """Put tied interactions into random order.

    UserError for neither timestamps nor a column, impressions, or an item without a value in the column.
    """
    interactions = dataset.interactions
    if dataset.impressions is not None:
        raise UserError("data.shuffle_ties: logs with impressions know their order; shuffling is for purchases alone")
    users = interactions[USER].to_numpy()
    if column is None:
        if TIMESTAMP not in interactions.columns:
            raise UserError("data.shuffle_ties: the logs have no timestamp; name the item column that sorted the ties")
        changes = np.diff(interactions[TIMESTAMP].to_numpy()) != 0
        groups = np.concatenate([[0], np.cumsum(changes | (np.diff(users) != 0))])
    else:
        assert table is not None
        ranks = _ranks(dataset, table, id_column, column, max_expansion)
        groups = ascending_runs(users, ranks[interactions["item"].to_numpy()])
    order = np.lexsort((np.random.default_rng(seed).random(len(groups)), groups))
    shuffled = interactions.drop(USER, POSITION)[order]
    table_again = interactions.select(USER, POSITION).hstack(shuffled).select(interactions.columns)
    known = (dataset.rejects, dataset.summary, dataset.understood)
    return Dataset(dataset.users, dataset.items, table_again, None, *known)


def ascending_runs(
    users: NDArray[np.integer],  # (N,) end to end
    values: NDArray[np.integer],  # (N,)
) -> NDArray[np.int64]:
    """Number the maximal strictly ascending runs within users, (N,).

    >>> ascending_runs(np.array([0, 0, 0, 0, 1]), np.array([3, 5, 4, 9, 10])).tolist()
    [0, 0, 1, 1, 2]
    """
    breaks = (np.diff(users) != 0) | (np.diff(values) <= 0)
    return np.concatenate([[0], np.cumsum(breaks)]).astype(np.int64)[: len(users)]


def _ranks(dataset: Dataset, table: Path, id_column: str, column: str, max_expansion: float) -> NDArray[np.int64]:
    rows = read_table(table, [id_column, column], max_expansion, [id_column])
    keys = blank_to_null(rows[column])
    if keys.dtype == pl.String and numbers(keys).null_count() == keys.null_count():
        keys = numbers(keys)  # of a CSV file, whose "10" is after "9"
    ids = dataset.items.select(pl.col(ITEM_ID).cast(pl.String))
    joined = ids.join(
        pl.DataFrame({ITEM_ID: id_texts(rows[id_column]), "key": keys}), on=ITEM_ID, how="left", maintain_order="left"
    )
    missing = joined.filter(pl.col("key").is_null())
    if len(missing):
        raise UserError(f"{table}: item {missing[ITEM_ID][0]} has no {column}, by which ties are to be found")
    return joined["key"].rank("dense").cast(pl.Int64).to_numpy()
