"""Logs to the canonical table: who interacted with what in which order, and, where it is known, what was shown.

Input is CSV, Parquet or JSONL. A row that cannot be read is set aside with its file, row and reason, so that

    read = accepted + rejected + filtered

and nothing is repaired or guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from adagrpo.data.columns import (
    ATTRIBUTES,
    CLICKED,
    EVENT,
    ITEM_ID,
    POSITION,
    PROPENSITY,
    RATING,
    SLOT,
    TEXT,
    TIMESTAMP,
    USER_ID,
)
from adagrpo.data.files import columns_of, kind_of, one_line, read_table, read_text
from adagrpo.errors import UserError

__all__ = ["ColumnMapping", "Logs", "read_items", "read_logs"]

BOOLEANS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
SHOWN = 40  # characters of a bad value that a reason repeats


@dataclass(frozen=True)
class ColumnMapping:
    """What the columns are called in the user's files.

    Without `timestamp` and `order`, a column called `timestamp`, or else `position`, orders the interactions.
    `clicked` marks a log of impressions, one row for each item that was shown: 1 means shown and chosen, so also an
    interaction; 0 only shown; empty an interaction that has no logged impression.
    """

    user: str = USER_ID
    item: str = ITEM_ID
    timestamp: str | None = None
    order: str | None = None
    event: str | None = None
    rating: str | None = None
    clicked: str | None = None
    slot: str | None = None
    propensity: str | None = None


@dataclass(frozen=True)
class Logs:
    """What was read, in the order of the files. The time key is `timestamp` or `position`."""

    interactions: pl.DataFrame  # user_id, item_id, time key [, rating]
    impressions: pl.DataFrame | None  # user_id, item_id, time key, clicked [, slot, propensity]
    rejects: pl.DataFrame  # file, row (0 is the first row of data), reason
    rows_read: int
    rows_filtered: int  # by event or rating

    @property
    def time_key(self) -> str:
        """The column that orders a user's interactions."""
        return TIMESTAMP if TIMESTAMP in self.interactions.columns else POSITION


class _Field(NamedTuple):
    source: str  # the column's name in the file
    required: bool
    expected: str  # what would be right
    parse: Callable[[pl.Series], pl.Series]  # null where a value cannot be used


def read_logs(
    paths: Sequence[Path],
    columns: ColumnMapping,
    *,
    keep_events: Sequence[str] | None = None,
    min_rating: float | None = None,
    max_bad_rows: int = 0,
) -> Logs:
    """Read interaction or impression logs.

    Ids are 64-bit integers where all of them are, written plainly (`007` is text), and strings otherwise. Dates of a
    Parquet file become seconds since 1970.

    Args:
        paths: .csv, .csv.gz, .parquet, .jsonl or .ndjson files with the same columns.
        columns: their names.
        keep_events: only rows of these events; needs `columns.event`.
        min_rating: only interactions rated at least so; needs `columns.rating`.
        max_bad_rows: how many rows may be rejected, over all files.

    Raises:
        UserError: a file or column is missing, there is nothing to read, or too many rows are bad.
    """
    if not paths:
        raise UserError("data.logs: no file given; name at least one CSV, Parquet or JSONL file")
    if keep_events is not None and columns.event is None:
        raise UserError("data.keep_events: needs data.columns.event, the column that holds the event")
    if min_rating is not None and columns.rating is None:
        raise UserError("data.min_rating: needs data.columns.rating, the column that holds the rating")
    fields = _fields(_choose_time(columns, Path(paths[0])))
    parts = [_read_log(Path(path), fields) for path in paths]
    rejects = pl.concat([bad for _, bad in parts])
    table = _stack([good for good, _ in parts])
    rows_read = len(table) + len(rejects)
    if rows_read == 0:
        raise UserError(f"{paths[0]}: no rows; a log has at least one interaction")
    if len(rejects) > max_bad_rows:
        file, row, reason = rejects.row(0)
        raise UserError(
            f"{file}, row {row}: {reason} (the first of {len(rejects)} bad rows; data.max_bad_rows is {max_bad_rows})"
        )
    kept = _filter(table, keep_events, min_rating)
    chosen = kept.filter(pl.col(CLICKED).fill_null(True)) if columns.clicked else kept
    filtered = len(table) - len(kept)
    if len(chosen) == 0:
        found = f"{len(rejects)} rejected, {filtered} filtered by event or rating, {len(kept)} shown but not chosen"
        raise UserError(f"{paths[0]}: no interaction among {rows_read} rows: {found}")
    keys = [USER_ID, ITEM_ID, TIMESTAMP if TIMESTAMP in fields else POSITION]
    shown = [name for name in (CLICKED, SLOT, PROPENSITY) if name in fields]
    impressions = kept.filter(pl.col(CLICKED).is_not_null()).select(*keys, *shown) if columns.clicked else None
    interactions = chosen.select(*keys, *([RATING] if columns.rating else []))
    return Logs(interactions, impressions, rejects, rows_read, filtered)


def read_items(
    path: Path,
    *,
    id_column: str = ITEM_ID,
    text_columns: Sequence[str] = (),
    attribute_columns: Sequence[str] = (),
    attribute_names: Path | None = None,
) -> pl.DataFrame:
    """Read an item table.

    Args:
        path: .csv, .csv.gz, .parquet, .jsonl or .ndjson file.
        id_column: holds the ids that the logs use.
        text_columns: joined by a space.
        attribute_columns: lists, or scalars, which become `column=value`.
        attribute_names: Parquet file (attribute_id, name) that decodes lists of integers; `attribute:<id>` without.

    Returns:
        item_id, text (String), attributes (List of String).

    Raises:
        UserError: a file or column is missing, or an item has no id or two rows.
    """
    path = Path(path)
    table = read_table(path, [id_column, *text_columns, *attribute_columns])
    if len(table) == 0:
        raise UserError(f"{path}: no rows; an item table has at least one item")
    ids = _item_ids(path, table[id_column])
    texts = [_as_text(name, table[name].dtype) for name in text_columns]
    decode = _attribute_names(Path(attribute_names) if attribute_names else None)
    lists = [_as_attributes(name, table[name].dtype, decode).fill_null([]) for name in attribute_columns]
    empty = pl.lit([], dtype=pl.List(pl.String))
    return table.select(
        pl.lit(ids).alias(ITEM_ID),
        (pl.concat_str(texts, separator=" ", ignore_nulls=True) if texts else pl.lit("")).alias(TEXT),
        (pl.concat_list(lists) if lists else empty).alias(ATTRIBUTES),
    )


def _fields(columns: ColumnMapping) -> dict[str, _Field]:
    """Canonical name to how a column is read. `columns` has a timestamp or an order."""
    fields = {
        USER_ID: _Field(columns.user, True, "an id", _identifiers),
        ITEM_ID: _Field(columns.item, True, "an id", _identifiers),
    }
    if columns.timestamp is not None:
        fields[TIMESTAMP] = _Field(columns.timestamp, True, "a number >= 0", lambda values: _numbers(values, 0.0))
    elif columns.order is not None:
        fields[POSITION] = _Field(columns.order, True, "a number", _numbers)
    if columns.event is not None:
        fields[EVENT] = _Field(columns.event, False, "text", lambda values: values.cast(pl.String))
    if columns.rating is not None:
        fields[RATING] = _Field(columns.rating, False, "a number", lambda values: _numbers(values).cast(pl.Float64))
    if columns.clicked is not None:
        fields[CLICKED] = _Field(columns.clicked, False, "1, 0, true, false or nothing", _booleans)
        if columns.slot is not None:
            fields[SLOT] = _Field(columns.slot, False, "a whole number >= 0", _slots)
        if columns.propensity is not None:
            fields[PROPENSITY] = _Field(
                columns.propensity, False, "a probability", lambda values: _numbers(values, 0.0, 1.0).cast(pl.Float64)
            )
    return fields


def _choose_time(columns: ColumnMapping, path: Path) -> ColumnMapping:
    if columns.timestamp is not None and columns.order is not None:
        raise UserError("data.columns: timestamp and order are both given; one of them orders the interactions")
    if columns.timestamp is not None or columns.order is not None:
        return columns
    available = columns_of(path)
    if TIMESTAMP in available:
        return replace(columns, timestamp=TIMESTAMP)
    if POSITION in available:
        return replace(columns, order=POSITION)
    raise UserError(
        f"{path}: which column orders the interactions? set data.columns.timestamp or data.columns.order to one of "
        f"{', '.join(map(one_line, available))}"
    )


def _read_log(path: Path, fields: dict[str, _Field]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The good rows of one file, parsed, and the rejects."""
    table, problem = read_text(path, list(dict.fromkeys(field.source for field in fields.values())))
    for field in fields.values():
        dtype = table[field.source].dtype
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
            raise UserError(f"{path}: column '{field.source}' is of type {dtype}, expected {field.expected}")
    raw = pl.DataFrame({name: _blank_to_null(table[field.source]) for name, field in fields.items()})
    parsed = pl.DataFrame({name: field.parse(raw[name]) for name, field in fields.items()})
    bad = pl.DataFrame(
        {
            name: parsed[name].is_null() if field.required else parsed[name].is_null() & raw[name].is_not_null()
            for name, field in fields.items()
        }
    )
    rejected = bad.select(pl.any_horizontal(pl.all())).to_series()
    if problem is not None:
        rejected = rejected | problem.is_not_null()
    rows = rejected.arg_true()
    reasons = _reasons(raw[rows], bad[rows], fields, None if problem is None else problem[rows])
    rejects = pl.DataFrame({"row": rows.cast(pl.Int64), "reason": reasons})
    return parsed.filter(~rejected), rejects.select(pl.lit(str(path)).alias("file"), "row", "reason")


def _reasons(raw: pl.DataFrame, bad: pl.DataFrame, fields: dict[str, _Field], problem: pl.Series | None) -> pl.Series:
    """One line for each bad row, about the first thing that is wrong with it."""
    reasons = [] if problem is None else [pl.lit(problem)]
    for name, field in fields.items():
        found = pl.lit(raw[name].cast(pl.String).str.slice(0, SHOWN).str.replace_all(r"\s", " "))
        what = pl.concat_str(pl.lit(f"{field.source} is '"), found, pl.lit(f"', expected {field.expected}"))
        empty = pl.lit(f"{field.source} is empty, expected {field.expected}")
        reasons.append(pl.when(pl.lit(bad[name])).then(pl.coalesce(what, empty)))
    return pl.select(pl.coalesce(reasons)).to_series()


def _filter(table: pl.DataFrame, keep_events: Sequence[str] | None, min_rating: float | None) -> pl.DataFrame:
    if keep_events is not None:
        table = table.filter(pl.col(EVENT).is_in(list(keep_events)))
    if min_rating is None:
        return table
    rated = pl.col(RATING) >= min_rating
    return table.filter(rated | ~pl.col(CLICKED) if CLICKED in table.columns else rated)  # only shown: has no rating


def _stack(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """All files in one table; ids are integers only where they are in every file."""
    for name in (USER_ID, ITEM_ID):
        if len({table[name].dtype for table in tables}) > 1:
            tables = [table.with_columns(pl.col(name).cast(pl.String)) for table in tables]
    stacked = pl.concat(tables, how="vertical_relaxed")
    return stacked.with_columns(_integers_if_all(stacked[USER_ID]), _integers_if_all(stacked[ITEM_ID]))


def _blank_to_null(values: pl.Series) -> pl.Series:
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        return _where(values.str.strip_chars() != "", values)
    return values.fill_nan(None) if values.dtype.is_float() else values


def _where(keep: pl.Series, values: pl.Series) -> pl.Series:
    """Null where `keep` is not true."""
    return pl.select(pl.when(pl.lit(keep)).then(pl.lit(values)).alias(values.name)).to_series()


def _identifiers(values: pl.Series) -> pl.Series:
    """Int64, or String for what is text; ids whose bytes were not UTF-8 could not be told apart and are null."""
    if values.dtype == pl.String:
        return _where(~values.str.contains("\ufffd", literal=True), values)
    if values.dtype == pl.UInt64:
        return _integers_if_all(values.cast(pl.String))
    if values.dtype.is_float():
        values = _where((values == values.floor()) & (values.abs() < 2.0**53), values)
    if values.dtype.is_numeric():
        return values.cast(pl.Int64, strict=False)
    return pl.Series(values.name, [None] * len(values), dtype=pl.String)


def _integers_if_all(ids: pl.Series) -> pl.Series:
    """Strings to integers where nothing is lost."""
    if ids.dtype != pl.String:
        return ids
    integers = ids.cast(pl.Int64, strict=False)
    return integers if integers.cast(pl.String).eq_missing(ids).all() else ids


def _numbers(values: pl.Series, low: float = -np.inf, high: float = np.inf) -> pl.Series:
    """Int64 where all usable values are integers (a timestamp in nanoseconds needs all its digits), else Float64."""
    if values.dtype in (pl.Date, pl.Datetime):
        values = values.cast(pl.Datetime("us")).dt.epoch("us")
        values = values // 1_000_000 if (values % 1_000_000 == 0).all() else values / 1_000_000
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    real = values.cast(pl.Float64, strict=False)
    usable = (real.is_finite() & (real >= low) & (real <= high)).fill_null(False)
    if values.dtype == pl.String or values.dtype.is_integer():
        whole = values.cast(pl.Int64, strict=False)
        if (whole.is_not_null() | ~usable).all():
            return _where(usable, whole)
    return _where(usable, real)


def _slots(values: pl.Series) -> pl.Series:
    slots = _numbers(values, 0.0, 2.0**31 - 1)
    return _where(slots == slots.floor(), slots).cast(pl.Int32)


def _booleans(values: pl.Series) -> pl.Series:
    text = values.cast(pl.String).str.strip_chars().str.to_lowercase()
    return text.replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)


def _item_ids(path: Path, column: pl.Series) -> pl.Series:
    ids = _identifiers(_blank_to_null(column))
    if ids.null_count():
        row = ids.is_null().arg_max()
        raise UserError(f"{path}, row {row}: {column.name} is empty or not an id; every item needs one")
    ids = _integers_if_all(ids)
    if ids.n_unique() < len(ids):
        second = int(np.argmin(ids.is_first_distinct().to_numpy()))
        first = int(np.argmax((ids == ids[second]).to_numpy()))
        name = one_line(str(ids[first]))
        raise UserError(f"{path}, rows {first} and {second}: both are item '{name}'; an item has one row")
    return ids


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name).cast(pl.List(pl.String)).list.join(" ") if dtype == pl.List else pl.col(name).cast(pl.String)
    return pl.when(column.str.strip_chars() != "").then(column)


def _as_attributes(name: str, dtype: pl.DataType, decode: pl.Expr) -> pl.Expr:
    if not isinstance(dtype, pl.List):
        text = _as_text(name, dtype)
        return pl.when(text.is_not_null()).then(pl.concat_list(pl.concat_str(pl.lit(f"{name}="), text)))
    values = pl.col(name).list.drop_nulls()
    if dtype.inner.is_integer():
        return values.list.eval(decode)
    return values.cast(pl.List(pl.String))


def _attribute_names(path: Path | None) -> pl.Expr:
    """The name of an element, an attribute's number."""
    unnamed = pl.concat_str(pl.lit("attribute:"), pl.element())
    if path is None:
        return unnamed
    if kind_of(path) != "Parquet":
        raise UserError(f"{path}: attribute names are a Parquet file with the columns attribute_id and name")
    table = read_table(path, ["attribute_id", "name"])
    table = table.drop_nulls().filter(pl.col("name").str.strip_chars() != "").unique("attribute_id", keep="first")
    named = pl.element().replace_strict(table["attribute_id"], table["name"], default=None, return_dtype=pl.String)
    return pl.coalesce(named, unnamed)
