"""Ties: interactions whose order the logs do not know, and what a result owes to the order they were written in.

Logs that are exact to the day put a user's purchases of one day in some order of the file, often that of the item ids;
a model can learn that order and be rewarded for it. `shuffle_ties` puts tied interactions into a random order instead,
before anything is split. Where there are timestamps, equal ones are ties. Where there are none but ties are known to
stand in ascending order of an item column (the public Amazon files: by ASIN within a day), every maximal ascending run
of that column is shuffled. Such a run holds whole days and, by chance, purchases of different days too, so results on
data shuffled this way are a lower bound of what is left without the tie order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM_ID, POSITION, TIMESTAMP, USER
from adagrpo.data.dataset import Dataset
from adagrpo.data.logs.cells import blank_to_null, id_texts, numbers
from adagrpo.data.logs.unpacking import MAX_EXPANSION
from adagrpo.data.logs.whole_tables import read_table
from adagrpo.errors import UserError


def shuffle_ties(
    dataset: Dataset,
    *,
    seed: int,
    table: Path | None = None,
    id_column: str = ITEM_ID,
    column: str | None = None,
    max_expansion: float = MAX_EXPANSION,
) -> Dataset:
    """The data set with tied interactions in random order.

    Args:
        table: item table that holds `column`.
        column: in whose ascending order ties were written; None: equal timestamps are ties.
        max_expansion: to how many times its size a compressed table may unpack, see `adagrpo.data.logs.unpacking`.

    Raises:
        UserError: there are no timestamps and no column, impressions are there (their place among ties is unknown), or
            an item has no value in the column.
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
    """(N,) number of the maximal strictly ascending run, within a user, that each row belongs to.

    Example:
        >>> ascending_runs(np.array([0, 0, 0, 0, 1]), np.array([3, 5, 4, 9, 10])).tolist()
        [0, 0, 1, 1, 2]
    """
    breaks = (np.diff(users) != 0) | (np.diff(values) <= 0)
    return np.concatenate([[0], np.cumsum(breaks)]).astype(np.int64)[: len(users)]


def _ranks(dataset: Dataset, table: Path, id_column: str, column: str, max_expansion: float) -> NDArray[np.int64]:
    """(V,) rank of each item's value in the column."""
    rows = read_table(table, [id_column, column], max_expansion, [id_column])
    keys = blank_to_null(rows[column])
    if keys.dtype == pl.String and numbers(keys).null_count() == keys.null_count():
        keys = numbers(keys)  # of a CSV file, whose "10" is after "9"
    ids = dataset.items.select(pl.col(ITEM_ID).cast(pl.String))
    joined = ids.join(
        pl.DataFrame({ITEM_ID: id_texts(rows[id_column]), "key": keys}),
        on=ITEM_ID,
        how="left",
        maintain_order="left",
    )
    missing = joined.filter(pl.col("key").is_null())
    if len(missing):
        raise UserError(f"{table}: item {missing[ITEM_ID][0]} has no {column}, by which ties are to be found")
    return joined["key"].rank("dense").cast(pl.Int64).to_numpy()
