"""Logs to interactions: read CSV, Parquet and JSON lines, refuse bad rows with a reason, number users and items.

Every row that is read is accepted, filtered (by event or rating) or rejected, and rejects keep file, row and reason. Items
and users are numbered by the sorted order of their ids, so that a number says nothing about when an id first appeared.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from adagrpo.data.columns import (
    ATTRIBUTES,
    CLICKED,
    HISTORY_LENGTH,
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
from adagrpo.errors import UserError

__all__ = ["ColumnMapping", "Dataset", "Logs", "build_dataset", "read_items", "read_logs"]

EVENT = "event"
REASON = "reason"
NUMBERS = (TIMESTAMP, POSITION, RATING, SLOT, PROPENSITY)


@dataclass(frozen=True)
class ColumnMapping:
    """What the columns of the logs are called; None where there is no such column.

    `timestamp` or `order` says what came first. With `clicked`, a row is a shown item: true was chosen, and is an
    interaction too; false was only shown; null is an interaction that nobody logged an impression for.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str | None = None
    order: str | None = None
    event: str | None = None
    rating: str | None = None
    clicked: str | None = None
    slot: str | None = None
    propensity: str | None = None

    def canonical(self) -> dict[str, str]:
        """Canonical name to name in the file, of the columns that there are."""
        names = {
            USER_ID: self.user,
            ITEM_ID: self.item,
            TIMESTAMP: self.timestamp,
            POSITION: self.order,
            EVENT: self.event,
            RATING: self.rating,
            CLICKED: self.clicked,
            SLOT: self.slot,
            PROPENSITY: self.propensity,
        }
        return {canonical: name for canonical, name in names.items() if name is not None}


@dataclass(frozen=True)
class Logs:
    """What was read. `time` is the column that orders: timestamp, or position."""

    interactions: pl.DataFrame  # user_id, item_id, time [, rating]
    impressions: pl.DataFrame | None  # user_id, item_id, time, clicked [, slot, propensity]
    rejects: pl.DataFrame  # file, row (from 0), reason
    time: str
    rows_read: int
    rows_filtered: int


@dataclass(frozen=True)
class Dataset:
    """Numbered users, items and interactions."""

    users: pl.DataFrame  # user, user_id
    items: pl.DataFrame  # item, item_id, text, attributes
    interactions: pl.DataFrame  # user, item, position (from 0) [, timestamp, rating], sorted by user and position
    impressions: pl.DataFrame | None  # user, item, history_length, clicked [, slot, propensity]
    rejects: pl.DataFrame
    summary: dict[str, int]


def read_logs(
    paths: Sequence[Path],
    columns: ColumnMapping,
    *,
    keep_events: Sequence[str] | None = None,
    min_rating: float | None = None,
    max_bad_rows: int = 0,
) -> Logs:
    """Read one or more log files.

    Args:
        paths: `.csv`, `.csv.gz`, `.parquet`, `.jsonl` or `.ndjson` files of the same columns.
        columns: what their columns are called.
        keep_events: other events are filtered out.
        min_rating: lower ratings are filtered out, and so are missing ones.
        max_bad_rows: more rejected rows than this are an error.

    Raises:
        UserError: a file is missing, empty or of an unknown kind, a column is missing, nothing orders the rows, or too
            many rows are bad.
    """
    if (columns.timestamp is None) == (columns.order is None):
        found = ", ".join(_scan(paths[0]).collect_schema().names())
        raise UserError(f"{paths[0]}: name the column that orders the rows, timestamp or order; columns: {found}")
    time = TIMESTAMP if columns.timestamp is not None else POSITION
    for option, given, column in (("keep_events", keep_events, EVENT), ("min_rating", min_rating, RATING)):
        if given is not None and column not in columns.canonical():
            raise UserError(f"data.{option} needs data.columns.{column}")
    table = pl.concat([_read(path, columns) for path in paths], how="vertical_relaxed")
    if len(table) == 0:
        raise UserError(f"{paths[0]}: no rows")
    rejects = table.filter(pl.col(REASON) != "").select("file", "row", REASON)
    if len(rejects) > max_bad_rows:
        file, row, reason = rejects.row(0)
        raise UserError(
            f"{file}: row {row}: {reason} ({len(rejects)} bad rows, data.max_bad_rows allows {max_bad_rows})"
        )
    accepted = table.filter(pl.col(REASON) == "").with_columns(
        _integers_if_all_are(table, name) for name in (USER_ID, ITEM_ID)
    )
    kept = accepted.filter(*_filters(keep_events, min_rating))
    if len(kept) == 0:
        raise UserError(f"{paths[0]}: no rows left of {len(table)} ({len(rejects)} rejected, {len(accepted)} filtered)")
    extra = [name for name in (RATING,) if name in kept.columns]
    impressions, interactions = None, kept
    if CLICKED in kept.columns:
        interactions = kept.filter(pl.col(CLICKED).fill_null(True))
        shown = [name for name in (SLOT, PROPENSITY) if name in kept.columns]
        impressions = kept.filter(pl.col(CLICKED).is_not_null()).select(USER_ID, ITEM_ID, time, CLICKED, *shown)
    return Logs(
        interactions.select(USER_ID, ITEM_ID, time, *extra),
        impressions,
        rejects,
        time,
        rows_read=len(table),
        rows_filtered=len(accepted) - len(kept),
    )


def read_items(
    path: Path,
    *,
    id_column: str = "item_id",
    text_columns: Sequence[str] = (),
    attribute_columns: Sequence[str] = (),
    attribute_names: Path | None = None,
) -> pl.DataFrame:
    """Read an item table.

    Args:
        path: of the same kinds as logs.
        id_column: the items' ids.
        text_columns: joined by a blank.
        attribute_columns: list columns give one attribute an entry, others one `column=value`; nulls give none.
        attribute_names: Parquet table of `attribute_id` and `name` that decodes lists of integers; an attribute without a
            name becomes `attribute:<id>`.

    Returns:
        item_id, text, attributes (list of strings); one row an item.

    Raises:
        UserError: a file or column is missing, an id is null, or an item has two rows.
    """
    scan = _scan(path)
    schema = scan.collect_schema()
    for name in (id_column, *text_columns, *attribute_columns):
        _require(name, schema.names(), path)
    table = scan.collect().with_row_index("row")
    if table[id_column].null_count():
        row = table.filter(pl.col(id_column).is_null())["row"][0]
        raise UserError(f"{path}: row {row}: {id_column} is empty")
    repeated = table.filter(pl.col(id_column).is_duplicated())
    if len(repeated):
        same = repeated.filter(pl.col(id_column) == repeated[id_column][0])
        first, second = same["row"][:2]
        raise UserError(
            f"{path}: rows {first} and {second}: item {same[id_column][0]} is there twice; keep one row an item"
        )
    words = [pl.col(name).cast(pl.String) for name in text_columns] or [pl.lit("")]
    lists = [_attributes(table, name, attribute_names) for name in attribute_columns]
    none = pl.Series(ATTRIBUTES, [[]] * len(table), dtype=pl.List(pl.String))
    return table.select(
        pl.col(id_column).alias(ITEM_ID),
        pl.concat_str(words, separator=" ", ignore_nulls=True).alias(TEXT),
        pl.concat_list(none, *lists).alias(ATTRIBUTES),
    )


def build_dataset(
    logs: Logs, items: pl.DataFrame | None, *, min_user_interactions: int = 1, min_item_interactions: int = 1
) -> Dataset:
    """Filter to the k-core, number users and items, order each user's interactions.

    Args:
        logs: what was read.
        items: `read_items`; None where there is no item table. Items that no interaction mentions are left out, items
            without a row get no text and no attributes.
        min_user_interactions: users with fewer are dropped, again and again until nothing changes.
        min_item_interactions: the same for items.

    Raises:
        UserError: fewer than two users or items are left.
    """
    table = _core(logs.interactions, min_user_interactions, min_item_interactions)
    for name, column in (("user", USER_ID), ("item", ITEM_ID)):
        count = table[column].n_unique()
        if count < 2:
            raise UserError(
                f"the logs have {count} {name}{'' if count == 1 else 's'} with enough interactions; at least 2 are needed"
            )
    users = table.select(pl.col(USER_ID).unique().sort()).with_row_index(USER).cast({USER: pl.Int32})
    catalogue = table.select(pl.col(ITEM_ID).unique().sort()).with_row_index(ITEM).cast({ITEM: pl.Int32})
    extra = [name for name in (TIMESTAMP, RATING) if name in table.columns]
    numbered = (
        _number(table, users, catalogue)
        .sort(USER, logs.time, maintain_order=True)
        .with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over(USER).alias(POSITION + "_"))
    )
    interactions = numbered.select(USER, ITEM, pl.col(POSITION + "_").alias(POSITION), *extra)
    shown = None
    summary = {"rows_read": logs.rows_read, "rows_filtered": logs.rows_filtered, "rows_rejected": len(logs.rejects)}
    if logs.impressions is not None:
        shown = _impressions(logs.impressions, numbered, users, catalogue, logs.time)
        summary["impressions_dropped"] = len(logs.impressions) - len(shown)
    return Dataset(users, _describe(catalogue, items), interactions, shown, logs.rejects, summary)


def _scan(path: Path) -> pl.LazyFrame:
    """Open a file by its suffix. Text formats are read as strings, so that bad values are found and not tripped over."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a .csv, .csv.gz, .parquet or .jsonl file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: empty file")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            scan = pl.scan_parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            scan = pl.scan_csv(path, infer_schema=False)
        elif name.endswith((".jsonl", ".ndjson")):
            scan = pl.scan_ndjson(path, infer_schema_length=None)
        else:
            raise UserError(f"{path}: unknown kind of file; .csv, .csv.gz, .parquet and .jsonl can be read")
        scan.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return scan


def _require(name: str, names: Sequence[str], path: Path) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"columns: {', '.join(names)}"
        raise UserError(f"{path}: no column '{name}'; {hint}")


def _read(path: Path, columns: ColumnMapping) -> pl.DataFrame:
    """A file's rows under canonical names, each with its file, row and reason for rejection ('' if there is none)."""
    scan = _scan(path)
    names = columns.canonical()
    for name in names.values():
        _require(name, scan.collect_schema().names(), path)
    try:
        raw = scan.select(pl.col(name).alias(canonical) for canonical, name in names.items()).collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    ids = [pl.col(name).cast(pl.String).str.strip_chars().alias(name) for name in (USER_ID, ITEM_ID)]
    numbers = [pl.col(name).cast(pl.Float64, strict=False) for name in NUMBERS if name in raw.columns]
    clicked = [_boolean(CLICKED)] if CLICKED in raw.columns else []
    events = [pl.col(EVENT).cast(pl.String)] if EVENT in raw.columns else []
    parsed = raw.select(*ids, *numbers, *clicked, *events)
    reasons = [_reason(name, raw, required=name in (TIMESTAMP, POSITION)) for name in raw.columns if name != EVENT]
    both = pl.concat([parsed, raw.rename({name: f"raw_{name}" for name in raw.columns})], how="horizontal")
    reason = pl.coalesce(*reasons, pl.lit("")).alias(REASON)
    table = both.with_row_index("row").select(pl.lit(path.name).alias("file"), "row", *parsed.columns, reason)
    # times stay integers where they are: a float cannot tell microseconds since 1970 apart for ever
    return table.with_columns(
        pl.col(name).cast(pl.Int64)
        for name in (TIMESTAMP, POSITION)
        if name in raw.columns and raw[name].dtype.is_integer()
    )


def _boolean(name: str) -> pl.Expr:
    """Booleans, 0 and 1, or their usual words; anything else is null."""
    text = pl.col(name).cast(pl.String).str.strip_chars().str.to_lowercase()
    true, false = ["1", "1.0", "true", "yes"], ["0", "0.0", "false", "no"]
    return pl.when(text.is_in(true)).then(True).when(text.is_in(false)).then(False).otherwise(None).alias(name)


def _reason(name: str, raw: pl.DataFrame, *, required: bool) -> pl.Expr:
    """Why a column's value is bad, null where it is good."""
    value, given = pl.col(name), pl.col(f"raw_{name}")
    if name in (USER_ID, ITEM_ID):
        return pl.when(value.is_null() | (value == "")).then(pl.lit(f"{name} is empty"))
    missing = given.is_null() if not raw[name].dtype == pl.String else given.is_null() | (given.str.strip_chars() == "")
    reason = pl.when(~missing & value.is_null()).then(pl.lit(f"{name} cannot be read"))
    if name == CLICKED:
        return reason
    reason = reason.when(~missing & ~value.is_finite()).then(pl.lit(f"{name} is not finite"))
    if required:
        reason = (
            reason.when(missing).then(pl.lit(f"{name} is empty")).when(value < 0).then(pl.lit(f"{name} is negative"))
        )
    return reason


def _integers_if_all_are(table: pl.DataFrame, name: str) -> pl.Expr:
    """Ids as integers where all of them are written as such, without leading zeros that would be lost."""
    plain = table.filter(pl.col(REASON) == "")[name].str.contains(r"^(0|-?[1-9][0-9]{0,17})$").all()
    return pl.col(name).cast(pl.Int64) if plain else pl.col(name)


def _filters(keep_events: Sequence[str] | None, min_rating: float | None) -> list[pl.Expr]:
    events = [pl.col(EVENT).is_in(list(keep_events))] if keep_events is not None else []
    return events + ([pl.col(RATING).ge(min_rating).fill_null(False)] if min_rating is not None else [])


def _attributes(table: pl.DataFrame, name: str, names: Path | None) -> pl.Series:
    """A column as lists of attribute strings."""
    column = table[name]
    if not isinstance(column.dtype, pl.List):
        text = column.cast(pl.String)
        listed = table.select(
            pl.when(text.is_null() | (text == ""))
            .then(pl.lit([], dtype=pl.List(pl.String)))
            .otherwise(pl.concat_list(pl.lit(f"{name}=") + text))
        )
        return listed.to_series()
    flat = table.select("row", pl.col(name).alias("id")).explode("id").drop_nulls("id")
    if names is None:
        flat = flat.with_columns(pl.lit(f"{name}=") + pl.col("id").cast(pl.String))
    else:
        known = _scan(names).select(pl.col("attribute_id").alias("id"), "name").collect()
        flat = flat.join(known.cast({"id": flat["id"].dtype}), on="id", how="left", maintain_order="left")
        flat = flat.with_columns(pl.col("name").fill_null("attribute:" + pl.col("id").cast(pl.String)).alias("id"))
    gathered = flat.group_by("row", maintain_order=True).agg(pl.col("id").cast(pl.String))
    joined = table.select("row").join(gathered, on="row", how="left", maintain_order="left")["id"]
    return joined.fill_null(pl.Series([[]], dtype=pl.List(pl.String)))


def _core(table: pl.DataFrame, users: int, items: int) -> pl.DataFrame:
    """Drop users and items with too few interactions until all that are left have enough."""
    while True:
        kept = table.filter(pl.len().over(USER_ID) >= users).filter(pl.len().over(ITEM_ID) >= items)
        if len(kept) == len(table):
            return table
        table = kept


def _number(table: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Add user and item numbers; rows of others are dropped. Keeps the order."""
    joined = table.join(users, on=USER_ID, how="inner", maintain_order="left")
    return joined.join(items, on=ITEM_ID, how="inner", maintain_order="left")


def _impressions(
    shown: pl.DataFrame, numbered: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, time: str
) -> pl.DataFrame:
    """Number the impressions and say how many interactions of the user came before each."""
    shown = _number(shown, users, items).sort(USER, time, maintain_order=True)
    counts = numbered.group_by(USER, time).agg(pl.len().alias("new")).sort(USER, time)
    totals = counts.with_columns(pl.col("new").cum_sum().over(USER).alias(HISTORY_LENGTH))
    joined = shown.join_asof(
        totals.select(USER, time, HISTORY_LENGTH), on=time, by=USER, allow_exact_matches=False, check_sortedness=False
    )
    extra = [name for name in (SLOT, PROPENSITY) if name in shown.columns]
    casts = {HISTORY_LENGTH: pl.Int32} | ({SLOT: pl.Int32} if SLOT in extra else {})
    return (
        joined.with_columns(pl.col(HISTORY_LENGTH).fill_null(0))
        .select(USER, ITEM, HISTORY_LENGTH, CLICKED, *extra)
        .cast(casts)
    )  # type: ignore[arg-type]


def _describe(catalogue: pl.DataFrame, items: pl.DataFrame | None) -> pl.DataFrame:
    """Add text and attributes to the catalogue."""
    empty = pl.Series([[]], dtype=pl.List(pl.String))
    if items is None:
        none = pl.Series(ATTRIBUTES, [[]] * len(catalogue), dtype=pl.List(pl.String))
        return catalogue.with_columns(pl.lit("").alias(TEXT), none)
    try:
        known = items.with_columns(pl.col(ITEM_ID).cast(catalogue[ITEM_ID].dtype))
    except pl.exceptions.PolarsError as error:
        raise UserError(f"the item table's ids are {items[ITEM_ID].dtype}, the logs' are integers") from error
    joined = catalogue.join(known, on=ITEM_ID, how="left", maintain_order="left")
    return joined.with_columns(pl.col(TEXT).fill_null(""), pl.col(ATTRIBUTES).fill_null(empty))
