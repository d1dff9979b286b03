"""Number the users and items of logs, and order each user's interactions.

The k-core repeatedly drops users and items with few interactions (Seidman 1983). Items are numbered by a hash of their
ids, users by id.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.columns import (
    ATTRIBUTES,
    BASKET,
    CLICKED,
    CLICKED_AT,
    DAYS,
    GROUPS,
    HISTORY_LENGTH,
    HISTORY_UNTIL,
    ITEM,
    ITEM_ID,
    POSITION,
    PROPENSITY,
    RATING,
    SLOT,
    TEXT,
    TIMESTAMP,
    USER,
    USER_ID,
)
from adagrpo.data.logs.interactions import Logs
from adagrpo.data.logs.log_fields import UNITS
from adagrpo.errors import UserError
from adagrpo.readers.cells import blank_to_null, id_texts, numbers
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import MAX_EXPANSION

KEY = b"adagrpo: items, 1"
_BYTES = 8  # of a hash; two of a million items agree with a probability of 3e-8, and are then ordered by their ids


def in_hash_order(ids: pl.Series, key: bytes = KEY) -> pl.Series:
    """Return the distinct ids by (blake2b_64(key, text of the id), id), lest their numbers carry information.

    The key is fixed, so that runs share prepared data.
    """
    distinct = ids.unique().sort()
    texts = distinct.cast(pl.String)
    hashes = (blake2b(text.encode(), digest_size=_BYTES, key=key).digest() for text in texts)
    numbers = np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)
    return distinct.gather(np.argsort(numbers, kind="stable"))


@dataclass(frozen=True)
class Dataset:
    """Numbered users and items, and interactions, oldest first.

    `history_length` counts the user's interactions before an impression, `history_until` those up to its time or that
    of its click: it is known to precede interaction `n` only if `history_until <= n`.
    """

    users: pl.DataFrame  # user Int32, user_id
    items: pl.DataFrame  # item Int32, item_id, text, attributes [, groups] (lists of strings)
    interactions: pl.DataFrame  # user, item, position Int32 [, timestamp, rating, basket, days], by user and position
    impressions: pl.DataFrame | None  # user, item, history_length, history_until, clicked [, timestamp, slot ...]
    rejects: pl.DataFrame  # as in `Logs`
    summary: dict[str, int]  # counts of rows
    understood: dict[str, Any] = field(default_factory=dict)  # as in `Logs`


def build_dataset(
    logs: Logs,
    items: pl.DataFrame | None = None,  # of `read_items`; may lack items of the logs
    *,
    min_user_interactions: int = 1,
    min_item_interactions: int = 1,
    keep_unseen_items: bool = False,  # keep items of the table without interactions
    baskets: bool = False,
    numbered_before: pl.Series | None = None,  # (V,) ids that keep their numbers, 0 to V - 1
) -> Dataset:
    """Take the k-core, number users and items, and sort each user's interactions by time; ties keep the file's order.

    With `baskets`, lines of one order id (without one, of one time) stand together, without repeats, at the time of the
    last and in the order of items. UserError if fewer than two users or items are left.
    """
    item_ids = logs.interactions[ITEM_ID]
    described = items
    if described is None:
        described = pl.DataFrame(schema={ITEM_ID: item_ids.dtype, TEXT: pl.String, ATTRIBUTES: pl.List(pl.String)})
    elif described[ITEM_ID].dtype != item_ids.dtype:  # compared as text
        item_ids, described = item_ids.cast(pl.String), described.with_columns(pl.col(ITEM_ID).cast(pl.String))
    kept = _k_core(logs.interactions.with_columns(item_ids), min_user_interactions, min_item_interactions)
    user_ids, catalogue = kept[USER_ID].unique().sort(), kept[ITEM_ID].unique()
    if len(user_ids) < 2 or len(catalogue) < 2:
        left = f"{len(user_ids)} users and {len(catalogue)} items are left"
        limits = f"min_user_interactions {min_user_interactions}, min_item_interactions {min_item_interactions}"
        raise UserError(f"data: {left} ({limits}); two of each are needed")
    met = int(catalogue.is_in(described[ITEM_ID].implode()).sum())
    if keep_unseen_items:
        catalogue = pl.concat([catalogue, described[ITEM_ID]]).unique()
    if numbered_before is None:
        catalogue = in_hash_order(catalogue)
    else:
        came = catalogue.filter(~catalogue.is_in(numbered_before.implode()))
        catalogue = pl.concat([numbered_before, in_hash_order(came)])
    numbered = _number(kept, user_ids, catalogue).sort(USER, logs.time_key, maintain_order=True)
    unit = logs.understood.get("time", {}).get("unit")
    lines = len(numbered)
    if baskets:
        numbered = _in_baskets(numbered, logs.time_key, unit)
    user, when = numbered[USER].to_numpy(), numbered[logs.time_key].to_numpy()
    tied = np.append((user[1:] == user[:-1]) & (when[1:] == when[:-1]), False)
    tied[1:] |= tied[:-1].copy()  # the last of each run of equal times, too
    repeated = numbered.select(USER, ITEM, logs.time_key).filter(pl.Series(tied))
    counts = {
        "rows_read": logs.rows_read,
        "rows_rejected": len(logs.rejects),
        "rows_filtered": logs.rows_filtered,
        "interactions_dropped": len(logs.interactions) - len(kept),
        "exact_duplicates": len(repeated) - repeated.n_unique(),
    }
    counts |= logs.left_out
    if baskets:
        counts["repeats_within_baskets_dropped"] = lines - len(numbered)
        counts["baskets"] = numbered.select(USER, BASKET).n_unique()
    if items is not None:
        counts["items_described"] = met
    if logs.duplicates_dropped is not None:
        counts["exact_duplicates_dropped"] = logs.duplicates_dropped
    impressions = None
    if logs.impressions is not None:
        shown = logs.impressions.with_columns(pl.col(ITEM_ID).cast(item_ids.dtype))
        known = _number(shown, user_ids, catalogue).drop_nulls([USER, ITEM])
        counts["impressions_dropped"] = len(shown) - len(known)
        before, until = _counts_at(known.select(USER, logs.time_key), numbered, logs.time_key)
        if CLICKED_AT in known.columns:
            clicked = known.select(USER, pl.max_horizontal(logs.time_key, CLICKED_AT).alias(logs.time_key))
            _, until = _counts_at(clicked, numbered, logs.time_key)
        history = {HISTORY_LENGTH: before.astype(np.int32), HISTORY_UNTIL: until.astype(np.int32)}
        impressions = known.hstack(pl.DataFrame(history)).sort(USER, logs.time_key, maintain_order=True)
        optional = [name for name in (TIMESTAMP, SLOT, PROPENSITY, CLICKED_AT) if name in impressions.columns]
        impressions = impressions.select(USER, ITEM, HISTORY_LENGTH, HISTORY_UNTIL, CLICKED, *optional)
    lengths = np.bincount(numbered[USER].to_numpy())
    starts = np.cumsum(lengths) - lengths
    rows = np.arange(len(numbered), dtype=np.int32)
    position = pl.Series(POSITION, rows - np.repeat(starts.astype(np.int32), lengths))
    optional = [name for name in (TIMESTAMP, RATING, *((BASKET, DAYS) if baskets else ())) if name in numbered.columns]
    interactions = numbered.with_columns(position).select(USER, ITEM, POSITION, *optional)
    users = pl.DataFrame({USER_ID: user_ids}).select(index(USER, len(user_ids)), USER_ID)
    listed = pl.DataFrame({ITEM_ID: catalogue}).join(described, on=ITEM_ID, how="left", maintain_order="left")
    known_lists = pl.col([name for name in (ATTRIBUTES, GROUPS) if name in described]).fill_null([])
    listed = listed.select(index(ITEM, len(catalogue)), ITEM_ID, pl.col(TEXT).fill_null(""), known_lists)
    return Dataset(users, listed, interactions, impressions, logs.rejects, counts, logs.understood)


# numbered user, item, the time and any basket id, by user and time; unit of the times
def _in_baskets(numbered: pl.DataFrame, time: str, unit: str | None) -> pl.DataFrame:
    if BASKET not in numbered.columns:
        numbered = numbered.with_columns(pl.col(time).alias(BASKET))
    elif numbered.select(USER, BASKET).n_unique() > numbered[BASKET].n_unique():
        found = numbered.group_by(BASKET, maintain_order=True).agg(pl.col(USER).n_unique())
        shared = found.filter(pl.col(USER) > 1)[BASKET]
        raise UserError(
            f"data.columns.basket: {len(shared):,} order ids belong to several users, the first is"
            f" {shared[0]!r}; an order is of one user; to ask for the next item, --set data.split.baskets=false"
        )
    # of baskets that end together, the one that began first comes first, and then that of the file's first row
    together = (
        numbered.with_row_index("first")
        .with_columns(pl.col(time).max().over(USER, BASKET), pl.col("first").min().over(USER, BASKET))
        .sort(USER, time, "first", ITEM, maintain_order=True)
        .with_columns(pl.col("first").rle_id().cast(pl.Int32).alias(BASKET))
        .with_columns(pl.col(BASKET) - pl.col(BASKET).min().over(USER))
        .drop("first")
    )
    if unit is not None:
        together = together.with_columns((pl.col(time) / (UNITS[unit] * 86_400)).alias(DAYS))
    return together.unique([USER, BASKET, ITEM], keep="first", maintain_order=True)


def _k_core(table: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    if max(min_user, min_item) <= 1:  # who is in the table has an interaction
        return table
    users, items = (_indices_in(table[name], table[name].unique()).to_numpy() for name in (USER_ID, ITEM_ID))
    rows = np.arange(len(users))
    while True:
        enough = (np.bincount(users)[users] >= min_user) & (np.bincount(items)[items] >= min_item)
        if enough.all():
            return table if len(rows) == len(table) else table[rows]
        rows, users, items = rows[enough], users[enough], items[enough]


def _indices_in(ids: pl.Series, known: pl.Series) -> pl.Series:
    lookup = pl.DataFrame({"id": known}).with_columns(index("code", len(known)))
    return pl.DataFrame({"id": ids}).join(lookup, on="id", how="left", maintain_order="left")["code"]


def index(name: str, length: int) -> pl.Expr:
    """Int32 row numbers from 0."""
    return pl.int_range(length, dtype=pl.Int32).alias(name)


def _number(table: pl.DataFrame, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    numbers = (_indices_in(table[USER_ID], users).alias(USER), _indices_in(table[ITEM_ID], items).alias(ITEM))
    return table.with_columns(numbers).drop(USER_ID, ITEM_ID)


# moments user and time; chosen the interactions, by user and time -> before each moment, and up to it
def _counts_at(moments: pl.DataFrame, chosen: pl.DataFrame, time: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.bincount(chosen[USER].to_numpy())
    starts = np.cumsum(lengths) - lengths  # (U,) the first row of each user in `chosen`
    both = pl.concat([chosen.select(USER, time), moments], how="vertical_relaxed")
    order = both.with_row_index("row").sort(USER, time, maintain_order=True)
    rows = order["row"].to_numpy()
    counts = np.concatenate([[0], np.cumsum(rows < len(chosen))])
    changes = (order[USER].diff() != 0) | (order[time].diff() != 0)
    first = np.flatnonzero(changes.fill_null(True).to_numpy())
    last = np.append(first[1:], len(rows))
    run = np.repeat(np.arange(len(first)), last - first)
    is_shown = rows >= len(chosen)
    earlier = starts[order[USER].to_numpy()[is_shown]]
    before, until = (np.empty(len(moments), dtype=np.int64) for _ in range(2))
    moment_rows = rows[is_shown] - len(chosen)
    before[moment_rows] = counts[first][run][is_shown] - earlier
    until[moment_rows] = counts[last][run][is_shown] - earlier
    return before, until


def shuffle_ties(
    dataset: Dataset,
    *,
    seed: int,
    table: Path | None = None,  # item table that holds `column`
    id_column: str = ITEM_ID,
    column: str | None = None,  # that sorted the ties; None: ties are equal timestamps
    max_expansion: float = MAX_EXPANSION,
) -> Dataset:
    """Put tied interactions, whose order the logs do not know, into random order.

    Ties are equal timestamps, or else maximal ascending runs of the sorting column. A run may join several days, so
    results on shuffled data are a lower bound. UserError for neither timestamps nor a column, impressions, or an item
    without a value in the column.
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
    return replace(dataset, interactions=table_again)


# users (N,) end to end; values (N,)
def ascending_runs(users: NDArray[np.integer], values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number the maximal strictly ascending runs within users, (N,)."""
    breaks = (np.diff(users) != 0) | (np.diff(values) <= 0)
    return np.concatenate([[0], np.cumsum(breaks)]).astype(np.int64)[: len(users)]


def _ranks(dataset: Dataset, table: Path, id_column: str, column: str, max_expansion: float) -> NDArray[np.int64]:
    rows = read_table(table, [id_column, column], max_expansion, [id_column])
    keys = blank_to_null(rows[column])
    if keys.dtype == pl.String and numbers(keys).null_count() == keys.null_count():
        keys = numbers(keys)  # of a CSV file, whose "10" is after "9"
    ids = dataset.items.select(pl.col(ITEM_ID).cast(pl.String))
    keyed = pl.DataFrame({ITEM_ID: id_texts(rows[id_column]), "key": keys})
    joined = ids.join(keyed, on=ITEM_ID, how="left", maintain_order="left")
    missing = joined.filter(pl.col("key").is_null())
    if len(missing):
        raise UserError(f"{table}: item {missing[ITEM_ID][0]} has no {column}, by which ties are to be found")
    return joined["key"].rank("dense").cast(pl.Int64).to_numpy()
