"""Read logs to interactions and, if known, impressions.

Unreadable rows are set aside, never repaired:

    read = accepted + rejected + filtered + dropped duplicates
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.data.columns import (
    BASKET,
    CLICKED,
    CLICKED_AT,
    EVENT,
    ITEM_ID,
    POSITION,
    PROPENSITY,
    QUANTITY,
    RATING,
    SLOT,
    TIMESTAMP,
    USER_ID,
)
from adagrpo.data.logs.log_fields import UNITS, Columns, Field, Refusals, fields_of
from adagrpo.errors import UserError
from adagrpo.readers.cells import ONE_EACH, UNREADABLE, blank_to_null, first_list, identifiers, integers_if_all, where
from adagrpo.readers.chunks import Chunk, read_chunks
from adagrpo.readers.formats import MAX_EXPANSION, SAVE_AS_UTF_8, file_format, one_line

__all__ = ["Columns", "Logs", "Refusals", "read_logs"]

DECODED = f"text that can be decoded; if it is not UTF-8, {SAVE_AS_UTF_8}"
SHOWN = 40  # characters of a bad value that a reason repeats
FILE, ROW, REASON = "file", "row", "reason"


@dataclass(frozen=True)
class Logs:
    """The rows in file order. Without an order there is no time key."""

    interactions: pl.DataFrame  # user_id, item_id, time key [, rating]
    impressions: pl.DataFrame | None  # user_id, item_id, time key, clicked [, slot, propensity]
    rejects: pl.DataFrame  # file, row (1 is the first row of data), reason
    rows_read: int
    rows_filtered: int  # by event or rating
    duplicates_dropped: int | None = None  # rows, where they were to be dropped
    understood: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `files` and `time`, how written
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)  # of the filtered rows of orders, by kind

    @property
    def time_key(self) -> str:
        """Return the column that orders a user's interactions."""
        return TIMESTAMP if TIMESTAMP in self.interactions.columns else POSITION


def read_logs(
    paths: Sequence[Path],  # files with the same columns, see `adagrpo.readers.formats.SUFFIXES`
    columns: Columns,
    *,
    keep_events: Sequence[str] | None = None,  # keep only these; needs `columns.event`
    min_rating: float | None = None,  # lowest rating of an interaction; needs `columns.rating`
    click_rating: float | None = None,  # rows are impressions, clicked if rated at least this; needs `columns.rating`
    ordered: bool = True,  # False if no column orders a user's rows; they keep the file order
    max_bad_rows: int = 0,  # limit of rejected rows over all files
    refuse: Refusals | None = None,
    max_expansion: float = MAX_EXPANSION,  # see `adagrpo.readers.formats`
    drop_duplicates: bool = False,
    drop_items: Sequence[str] = (),  # ids whose rows are left out
    first_rows: int | None = None,  # limit for each file
) -> Logs:
    """Read interaction or impression logs, in chunks.

    Ids are 64-bit integers if all are plain integers (`007` is text), else strings. Dates become seconds since 1970.
    Duplicates are of user, item and time, of impressions also of click, slot and propensity. UserError for a missing
    file or column, nothing left, or an exceeded limit.
    """
    refuse = refuse or Refusals()
    rated = click_rating is not None
    if not paths:
        raise UserError("data.logs: no file given; name at least one CSV, Parquet or JSONL file")
    if keep_events is not None and columns.event is None:
        raise UserError("data.keep_events: needs data.columns.event, the column that holds the event")
    if min_rating is not None and columns.rating is None:
        raise UserError("data.min_rating: needs data.columns.rating, the column that holds the rating")
    if rated and (columns.rating is None or columns.clicked is not None):
        raise UserError("data.click_rating: needs data.columns.rating, and takes the place of data.columns.clicked")
    fields = fields_of(paths, columns, ordered, rated)
    if refuse.after is not None and TIMESTAMP not in fields:
        raise UserError("data.refuse.after: needs data.columns.timestamp, the column that holds the time")

    reader = _Reader(fields, refuse, max_bad_rows)
    for path in map(Path, paths):
        reader.read(path, max_expansion, first_rows)
    table, rejects = reader.finish()
    if click_rating is not None:  # an item without a rating was shown and not rated
        table = table.with_columns((pl.col(RATING) >= click_rating).fill_null(False).alias(CLICKED))
    known, left_out = table, {}  # without guest orders, returns and ids that are no items, and counts of each
    for name, wanted in (
        ("rows_of_guests", pl.col(USER_ID).is_not_null() if BASKET in table.columns else None),
        ("rows_returned", (pl.col(QUANTITY) > 0).fill_null(True) if QUANTITY in table.columns else None),
        ("rows_of_no_item", ~pl.col(ITEM_ID).cast(pl.String).is_in(list(drop_items)) if drop_items else None),
    ):
        if wanted is not None:
            before, known = len(known), known.filter(wanted)
            left_out[name] = before - len(known)
    kept = known if keep_events is None else known.filter(pl.col(EVENT).is_in(list(keep_events)))
    if min_rating is not None:
        rated_enough = pl.col(RATING) >= min_rating
        if CLICKED in table.columns:  # what was only shown has no rating
            rated_enough = rated_enough | ~pl.col(CLICKED)
        kept = kept.filter(rated_enough)
    filtered = len(table) - len(kept)
    impressions = CLICKED in table.columns
    keys = [USER_ID, ITEM_ID, *(name for name in (TIMESTAMP, POSITION) if name in table.columns)]
    shown = [name for name in (CLICKED, SLOT, PROPENSITY) if name in table.columns]
    once = kept.unique([*keys, *shown], keep="first", maintain_order=True) if drop_duplicates else kept
    chosen = once.filter(pl.col(CLICKED).fill_null(True)) if impressions else once
    if not len(chosen):
        rows = len(table) + len(rejects)
        if rows == 0:
            raise UserError(f"{paths[0]}: no rows; a log has at least one interaction")
        counts = f"{len(rejects)} rejected, {filtered} filtered by event or rating, {len(once)} shown but not chosen"
        more = f"; the first of those rejected is row {rejects[ROW][0]}: {rejects[REASON][0]}" if len(rejects) else ""
        raise UserError(f"{paths[0]}: no interaction among {rows} rows: {counts}{more}")
    order = fields.get(TIMESTAMP)
    time = None if order is None or order.times is None else order.times.describe(table[TIMESTAMP], order.source)
    return Logs(
        chosen.select(*keys, *([RATING] if columns.rating else []), *([BASKET] if columns.basket else [])),
        once.filter(pl.col(CLICKED).is_not_null()).select(*keys, *shown) if impressions else None,
        rejects,
        len(table) + len(rejects),
        filtered,
        len(kept) - len(once) if drop_duplicates else None,
        {"files": reader.files} | ({} if time is None else {"time": time}),
        left_out,
    )


class _Reader:
    """Accumulates rows; beyond the limit of bad rows only the first is kept."""

    def __init__(self, fields: dict[str, Field], refuse: Refusals, max_bad_rows: int) -> None:
        self.fields, self.refuse, self.max_bad_rows = fields, refuse, max_bad_rows
        self.paths: list[Path] = []
        self.good: list[pl.DataFrame] = []  # the fields, and with `refuse.repeats` FILE and ROW
        self.bad: list[pl.DataFrame] = []  # FILE, ROW, REASON
        self.count = 0  # of bad rows
        self.files: list[dict[str, Any]] = []

    def read(self, path: Path, max_expansion: float, first_rows: int | None = None) -> None:
        self.paths.append(path)
        rows = 0
        sources = list(dict.fromkeys(field.source for field in self.fields.values()))
        ids = list(dict.fromkeys(self.fields[name].source for name in (USER_ID, ITEM_ID)))
        for whole in read_chunks(path, sources, ids, max_expansion):
            chunk = whole if first_rows is None else whole.before(first_rows)
            self._take(path, chunk)
            rows = chunk.first + len(chunk.table)
            if rows == first_rows:
                break
        self.files.append(file_format(path) | {"rows": rows} | ({"only_first": True} if rows == first_rows else {}))

    def _take(self, path: Path, chunk: Chunk) -> None:
        fields = self.fields
        for name, field in fields.items():
            dtype = chunk.table[field.source].dtype
            if dtype.is_nested() or dtype in UNREADABLE:
                right = f"; {ONE_EACH}" if name == ITEM_ID and isinstance(dtype, pl.List | pl.Array) else ""
                raise UserError(f"{path}: column '{field.source}' is of type {dtype}, expected {field.expected}{right}")
        raw = pl.DataFrame({name: blank_to_null(chunk.table[field.source]) for name, field in fields.items()})
        if chunk.first == 0 and self.refuse.lists:
            row = first_list(raw[ITEM_ID])
            if row is not None:
                name, value = one_line(fields[ITEM_ID].source), one_line(str(raw[ITEM_ID][row])[:SHOWN])
                what = f"{name} is '{value}', a list, as most of its values are; {ONE_EACH}"
                raise UserError(f"{path}, row {row + 1}: {what}")
        parsed = pl.DataFrame({name: field.parse(raw[name]) for name, field in fields.items()})
        bad = pl.DataFrame(
            {
                name: parsed[name].is_null() if field.required else parsed[name].is_null() & raw[name].is_not_null()
                for name, field in fields.items()
            }
        )
        if BASKET in fields:  # a line without a user is of a guest
            bad = bad.with_columns(bad[USER_ID] & raw[USER_ID].is_not_null())
        refused = self._refused(parsed)
        rejected = bad.select(pl.any_horizontal(pl.all())).to_series() | refused.is_not_null()
        if chunk.problem is not None:
            rejected = rejected | chunk.problem.is_not_null()
        rows = rejected.arg_true()
        if len(rows):
            problem = None if chunk.problem is None else chunk.problem[rows]
            reasons = _reasons(raw[rows], bad[rows], fields, problem, refused[rows])
            rejects = pl.DataFrame({ROW: rows.cast(pl.Int64) + chunk.first + 1, REASON: reasons})
            self.count += len(rejects)
            if self.count <= self.max_bad_rows or not self.bad:
                rejects = rejects if self.count <= self.max_bad_rows else rejects[:1]
                self.bad.append(rejects.select(self._file(), ROW, REASON))
        if self.count > self.max_bad_rows:
            self.good = []
            return
        kept = parsed.with_columns(integers_if_all(parsed[USER_ID]), integers_if_all(parsed[ITEM_ID]))
        if self.refuse.repeats:
            kept = kept.with_row_index(ROW, chunk.first + 1).cast({ROW: pl.Int64}).with_columns(self._file())
        self.good.append(kept.filter(~rejected))

    def _file(self) -> pl.Expr:
        return pl.lit(len(self.paths) - 1, dtype=pl.Int32).alias(FILE)

    def _refused(self, parsed: pl.DataFrame) -> pl.Series:
        reason = pl.lit(None, pl.String)
        if self.refuse.items is not None:
            item, source = pl.col(ITEM_ID).cast(pl.String), pl.lit(self.fields[ITEM_ID].source)
            text = pl.format("{} is '{}', which the item table lacks", source, _shown(item))
            reason = pl.when(~item.is_in(self.refuse.items.implode())).then(text).otherwise(reason)
        if self.refuse.after is not None:
            time, source = pl.col(TIMESTAMP), pl.lit(self.fields[TIMESTAMP].source)
            text = pl.format("{} is {}, after {}", source, time, pl.lit(f"{self.refuse.after}"))
            reason = pl.when(time > self.refuse.after).then(text).otherwise(reason)
        return parsed.with_columns(reason.alias(REASON))[REASON]

    def finish(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        table, parts = pl.DataFrame(), self.good
        if parts:
            for name in (USER_ID, ITEM_ID):
                if len({part[name].dtype for part in parts}) > 1:
                    parts = [part.with_columns(pl.col(name).cast(pl.String)) for part in parts]
            table = pl.concat(parts, how="vertical_relaxed")
            table = table.with_columns(integers_if_all(table[USER_ID]), integers_if_all(table[ITEM_ID]))
        if self.refuse.repeats and self.good:
            names = list(self.fields)
            first = table.select(pl.struct(names).is_first_distinct()).to_series()
            repeats = table.filter(~first).select(FILE, ROW, pl.lit("repeats an earlier row").alias(REASON))
            self.count += len(repeats)
            self.bad.append(repeats)
            table = table.filter(first).select(names)
        schema = {FILE: pl.Int32, ROW: pl.Int64, REASON: pl.String}
        rejects = pl.concat([pl.DataFrame(schema=schema), *self.bad]).sort(FILE, ROW, maintain_order=True)
        paths = pl.Series([str(path) for path in self.paths], dtype=pl.String)
        rejects = rejects.with_columns(pl.lit(paths).gather(pl.col(FILE)).alias(FILE))
        if self.count > self.max_bad_rows:
            file, row, reason = rejects.row(0)
            uncounted = " or more" if self.refuse.repeats and not self.good else ""  # rows that were let go
            more = (
                f"the first of {self.count} bad rows; data.max_bad_rows is {self.max_bad_rows}; prepare, run and decide"
                f" leave them out with --max-bad-rows {self.count}{uncounted}"
            )
            raise UserError(f"{file}, row {row}: {reason} ({more})")
        return table, rejects


def _reasons(
    raw: pl.DataFrame, bad: pl.DataFrame, fields: dict[str, Field], problem: pl.Series | None, refused: pl.Series
) -> pl.Series:
    reasons = [] if problem is None else [pl.lit(problem)]
    for name, field in fields.items():
        expected = field.times.expected if field.times is not None else field.expected
        value = pl.lit(raw[name].cast(pl.String))
        what = pl.concat_str(pl.lit(f"{field.source} is '"), _shown(value), pl.lit(f"', expected {expected}"))
        if field.parse is identifiers:
            reason = f"{field.source} holds a control character (U+0000), expected {expected} without one"
            undecoded = pl.concat_str(pl.lit(f"{field.source} is '"), _shown(value), pl.lit(f"', expected {DECODED}"))
            what = pl.when(value.str.contains("\ufffd", literal=True)).then(undecoded).otherwise(what)
            what = pl.when(value.str.contains("\x00", literal=True)).then(pl.lit(reason)).otherwise(what)
        empty = pl.lit(f"{field.source} is empty, expected {expected}")
        reasons.append(pl.when(pl.lit(bad[name])).then(pl.coalesce(what, empty)))
    return pl.select(pl.coalesce([*reasons, pl.lit(refused)])).to_series()


def _shown(text: pl.Expr) -> pl.Expr:
    return text.str.slice(0, SHOWN).str.replace_all(r"[\s\x00-\x1f\x7f]", " ")


def with_impressions(logs: Logs, shown: Logs, source: str) -> Logs:
    """Add impressions from other files to a log; clicks do not become interactions.

    UserError for missing clicks or times, or times that cannot be compared.
    """
    if shown.impressions is None:
        raise UserError(f"{source}: no column says what was clicked; name it, {source}.columns.clicked=NAME")
    if TIMESTAMP not in logs.interactions.columns or TIMESTAMP not in shown.impressions.columns:
        raise UserError(
            f"{source}: what was shown is put beside the interactions by time; name the columns of times,"
            f" data.columns.timestamp and {source}.columns.timestamp"
        )
    table = shown.impressions
    for name in (USER_ID, ITEM_ID):  # in the log's type; null where they are not of it
        there = table[name].cast(logs.interactions[name].dtype, strict=False)
        table = table.with_columns(where(there.cast(table[name].dtype) == table[name], there))
    times = [name for name in (TIMESTAMP, CLICKED_AT) if name in table.columns]
    table = table.with_columns(_in_unit(table[name], logs, shown, source) for name in times)
    own = [] if logs.impressions is None else [logs.impressions]
    understood = logs.understood | {"files": [*logs.understood["files"], *shown.understood["files"]]}
    return dataclasses.replace(
        logs,
        impressions=pl.concat([*own, table], how="diagonal_relaxed"),
        rejects=pl.concat([logs.rejects, shown.rejects]),
        rows_read=logs.rows_read + shown.rows_read,
        rows_filtered=logs.rows_filtered + shown.rows_filtered,
        understood=understood,
    )


def _in_unit(times: pl.Series, logs: Logs, shown: Logs, source: str) -> pl.Series:
    units = [entry.understood.get("time", {}).get("unit") for entry in (logs, shown)]
    if (units[0] is None) != (units[1] is None):
        described = [f"are {unit} since 1970" if unit else "are of a unit that is not known" for unit in units]
        raise UserError(
            f"{source}: the times of the logs {described[0]}, and these {described[1]}; write both in one unit"
        )
    whole = logs.interactions[TIMESTAMP].dtype.is_integer()
    if units[0] == units[1] or units[0] is None:
        return times.floor().cast(pl.Int64) if whole else times
    factor = UNITS[units[0]] / UNITS[units[1]]
    if factor >= 1 and times.dtype.is_integer():
        return times * int(factor)
    scaled = times // round(1 / factor) if factor < 1 and whole else times * factor
    return scaled.floor().cast(pl.Int64) if whole else scaled
