"""Exposures that a run is judged by: read from a table of their own, and never fitted on.

A user meets an item once: of repeats one row is kept, chosen if any of them was. Left out are users without a history,
items that the catalogue lacks, rows without a label, and pairs that the logs of the run hold up to the test target,
shown or chosen: of these a model may remember the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import ITEM, ITEM_ID, USER, USER_ID
from adagrpo.data.prepared import load_impressions, load_item_ids, load_until_test, load_user_ids
from adagrpo.data.splits import keyed_uniforms
from adagrpo.errors import UserError
from adagrpo.readers.cells import UNREADABLE, booleans, id_texts
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import MAX_EXPANSION, one_line


class Judged(NamedTuple):
    """The exposures of one judge, by user."""

    users: NDArray[np.int64]  # (N,) ascending
    items: NDArray[np.int64]  # (N,)
    labels: dict[str, NDArray[np.bool_]]  # (N,) each


def read_judged(
    path: Path,
    prepared: Path,
    *,
    user: str,
    item: str,
    labels: Sequence[str],
    some_users: int | None = None,
    seed: int = 0,
    max_expansion: float = MAX_EXPANSION,
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Read the exposures of a judge in the numbers of a run.

    Args:
        path: a table, see `read_table`.
        prepared: the folder of the prepared data.
        user: the column of users, in the ids of the logs.
        labels: columns of true and false.
        some_users: that many users at most, a function of (seed, user).
        max_expansion: see `adagrpo.readers.formats`.

    Returns:
        user, item and a boolean column a label, by user and item; and how many rows were left out for which reason.

    Raises:
        UserError: a column is missing or holds no label, or nothing is left to judge by.
    """
    table = read_table(path, [user, item, *labels], max_expansion, [user, item])
    marks = [_label(path, table[name]) for name in labels]
    rows = pl.DataFrame({USER_ID: id_texts(table[user]), ITEM_ID: id_texts(table[item])}).with_columns(marks)
    labelled = rows.drop_nulls(list(labels))
    numbered = _numbered(labelled, prepared)
    once = numbered.group_by(USER, ITEM).agg(pl.col(name).any() for name in labels).sort(USER, ITEM)
    kept = once.join(_of_the_logs(prepared), on=[USER, ITEM], how="anti", maintain_order="left")
    counts = {
        "rows": len(rows),
        "without_label": len(rows) - len(labelled),
        "unknown": len(labelled) - len(numbered),
        "repeats": len(numbered) - len(once),
        "of_the_logs": len(once) - len(kept),
    }
    if some_users is not None:
        known = kept[USER].unique().sort().to_numpy().astype(np.int64)
        drawn = known[keyed_uniforms(seed, known).argsort(kind="stable")[:some_users]]
        kept = kept.filter(pl.col(USER).is_in(drawn.tolist()))
    if len(kept) == 0:
        raise UserError(f"{path}: none of {len(rows)} rows is of a user with a history and an item of the catalogue")
    return kept, counts | {"kept": len(kept), "users": kept[USER].n_unique(), "items": kept[ITEM].n_unique()}


def _label(path: Path, values: pl.Series) -> pl.Series:
    """A label of each row, null where there is none."""
    dtype = values.dtype
    known = None if dtype.is_nested() or dtype in UNREADABLE else booleans(values)
    if known is None or (len(values) and known.null_count() == len(values)):
        example = next((f", such as '{one_line(str(value))}'" for value in values if value is not None), "")
        raise UserError(
            f"{path}: column '{values.name}' holds {dtype}{example} and no label; one is 1, 0, true or false"
        )
    return known


def as_judged(table: pl.DataFrame, labels: Sequence[str]) -> Judged:
    """The exposures of `read_judged`, with some of its labels."""
    users, items = (table[name].to_numpy().astype(np.int64) for name in (USER, ITEM))
    return Judged(users, items, {name: table[name].to_numpy().astype(np.bool_) for name in labels})


def _numbered(rows: pl.DataFrame, prepared: Path) -> pl.DataFrame:
    """Users with a history and items of the catalogue, by their rows."""
    users, items = (ids.cast(pl.String) for ids in (load_user_ids(prepared), load_item_ids(prepared)))
    known = pl.DataFrame({USER_ID: users}).with_row_index(USER).filter(load_until_test(prepared).lengths > 0)
    catalogue = pl.DataFrame({ITEM_ID: items}).with_row_index(ITEM)
    joined = rows.join(known, on=USER_ID, how="inner").join(catalogue, on=ITEM_ID, how="inner")
    return joined.drop(USER_ID, ITEM_ID).cast({USER: pl.Int32, ITEM: pl.Int32})


def _of_the_logs(prepared: Path) -> pl.DataFrame:
    """Every pair of user and item that the logs hold up to the test target."""
    shown = load_impressions(prepared)
    names = ("train.parquet", "validation.parquet", "test.parquet")
    tables = [pl.read_parquet(prepared / name, columns=[USER, ITEM]) for name in names]
    tables += [] if shown is None else [shown.select(USER, ITEM)]
    return pl.concat(tables).unique()
