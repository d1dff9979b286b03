"""The columns of logs, and how their values are parsed.

Times are numbers in any unit, kept as they are, or ISO 8601, converted to seconds since 1970:

    2024-01-31    2024-01-31T23:59    2024-01-31 23:59:59.25    2024-01-31T23:59:59Z    2024-01-31 23:59:59+02:00

Without an offset times are UTC. The first one fixes the form of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from adagrpo.config.data import Columns
from adagrpo.data.columns import (
    BASKET,
    CLICKED,
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
from adagrpo.errors import UserError
from adagrpo.readers.cells import LAST_TIME, LONGEST_ID, booleans, identifiers, in_seconds, numbers, slots, where
from adagrpo.readers.formats import columns_of, listed, one_line

ISO = (
    r"(?i)^(?<date>\d{4}-\d\d-\d\d)(?:[t ](?<clock>\d\d:\d\d)(?::(?<second>\d\d)(?:[.,](?<fraction>\d{1,9}))?)?"
    r"\s?(?<zone>z|utc|(?<sign>[+-])(?<hours>\d\d)(?::?(?<minutes>\d\d))?)?)?$"
)
UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
FROM, TO = 1e8, 1e11  # seconds between which a number is taken for a time since 1970: 1973 and 5138


class Times:
    """The form of a log's times, and their parser."""

    def __init__(self) -> None:
        self.kind: Literal["number", "ISO 8601"] | None = None  # known from the first time on
        self.first = ""  # as it is written
        self.naive = 0  # times without an offset

    @property
    def expected(self) -> str:
        """Describe a valid time."""
        if self.kind is None:
            return "a number >= 0 or a time such as 2024-01-31T23:59:59Z"
        form = "ISO 8601 from 1970 on" if self.kind == "ISO 8601" else "a number >= 0"
        return f"{form}, as in the rest of the column ({self.first})"

    def read(self, values: pl.Series) -> pl.Series:
        """Parse times as numbers; null if invalid or unlike the first."""
        dated = values.dtype in (pl.Date, pl.Datetime)
        read = numbers(values, 0.0, LAST_TIME)
        if self.kind is None:
            number, date = (len(read), _first(read)) if dated else (_first(read), len(read))
            if number > 0 and values.dtype == pl.String:  # text that is both is a number
                date = _first(iso_seconds(values))
            if min(number, date) < len(read):
                self.kind = "ISO 8601" if date < number else "number"
                self.first = one_line(str(values[min(number, date)]))
        if self.kind == "ISO 8601" and values.dtype == pl.String:
            parts = _iso_parts(values)
            seconds = _seconds(parts).alias(values.name)
            self.naive += int((seconds.is_not_null() & parts["zone"].is_null()).sum())
            return seconds
        if self.kind is not None and dated != (self.kind == "ISO 8601"):
            return read.clear(len(read))
        if dated and (values.dtype == pl.Date or values.dtype.time_zone is None):  # type: ignore[attr-defined]
            self.naive += len(read) - read.null_count()
        return read

    def describe(self, times: pl.Series, column: str) -> dict[str, Any] | None:
        """Describe form, unit and range of parsed times, if any."""
        if len(times) == 0 or self.kind is None:
            return None
        first, last = float(times.min()), float(times.max())  # type: ignore[arg-type]
        found: dict[str, Any] = {"column": column, "written_as": self.kind}
        unit = unit_of(first, last)
        if self.kind == "ISO 8601":
            unit, found["without_offset"] = "seconds", self.naive
        units = [unit_of(first, first), unit_of(last, last)]
        if unit is None and None not in units:
            found["units"] = units
        found |= {"unit": unit, "first": times.min(), "last": times.max()}
        return found | ({} if unit is None else {"from": moment(first, unit), "to": moment(last, unit)})


def _first(values: pl.Series) -> int:
    known = values.is_not_null()
    return int(known.arg_max() or 0) if known.any() else len(values)


def iso_seconds(values: pl.Series) -> pl.Series:
    """Parse ISO 8601 as seconds since 1970: Int64 if all are whole, else Float64; null if invalid.

    >>> iso_seconds(pl.Series(["1970-01-02", "1970-01-01T01:00:01+01:00", "1970-01-01 00:00:02 UTC"])).to_list()
    [86400, 1, 2]
    """
    return _seconds(_iso_parts(values)).alias(values.name)


def _iso_parts(values: pl.Series) -> pl.DataFrame:
    return values.str.strip_chars().str.extract_groups(ISO).struct.unnest()


def _seconds(parts: pl.DataFrame) -> pl.Series:
    clock = pl.format("{} {}:{}", "date", pl.col("clock").fill_null("00:00"), pl.col("second").fill_null("00"))
    micros = clock.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us").dt.epoch("us")
    fraction = pl.col("fraction").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64).fill_null(0)
    offset = pl.col("hours").cast(pl.Int64) * 60 + pl.col("minutes").cast(pl.Int64).fill_null(0)
    west = pl.when(pl.col("sign") == "+").then(-offset).otherwise(offset).fill_null(0)
    since = parts.select(micros + fraction + west * 60_000_000).to_series()
    return in_seconds(where(since >= 0, since))


def unit_of(low: float, high: float) -> str | None:
    """Guess the unit of a range of times since 1970.

    >>> unit_of(1.5e9, 1.7e9), unit_of(1.5e12, 1.7e12), unit_of(0, 500)
    ('seconds', 'milliseconds', None)
    """
    for unit, size in UNITS.items():
        if FROM * size <= low and high < TO * size:
            return unit
    return None


def moment(time: float, unit: str) -> str:
    """Format a time since 1970 as ISO 8601.

    >>> moment(86400_000, "milliseconds")
    '1970-01-02T00:00:00Z'
    """
    return datetime.fromtimestamp(int(time / UNITS[unit]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def two_units(time: Mapping[str, Any]) -> str | None:
    """Return a warning if times mix two units."""
    units = time.get("units")
    if units is None:
        return None
    return f"the lowest look like {units[0]} since 1970 and the highest like {units[1]}: write all in one unit"


__all__ = ["Columns", "Field", "Refusals", "fields_of"]

AN_ID = f"an id of up to {LONGEST_ID} characters"


@dataclass(frozen=True)
class Refusals:
    """Which readable rows and files to reject."""

    items: pl.Series | None = None  # ids; rows of other items are bad
    after: float | None = None  # rows of a later timestamp are bad, in the unit of the log
    repeats: bool = False  # rows whose fields are all those of an earlier one are bad
    lists: bool = True  # a file most of whose items are texts of lists is refused, see `adagrpo.readers.cells`


class Field(NamedTuple):
    """How to parse a column."""

    source: str  # the column's name in the file
    required: bool
    expected: str  # what would be right
    parse: Callable[[pl.Series], pl.Series]  # null where a value cannot be used
    times: Times | None = None  # of a field of times, how they are written


def fields_of(paths: Sequence[Path], columns: Columns, ordered: bool, rated: bool) -> dict[str, Field]:
    """Map canonical names to their parsers; UserError unless exactly one column orders the rows.

    By default an unused column `timestamp`, else `position`, does; ratings may define clicks.
    """
    if ordered and columns.timestamp is not None and columns.order is not None:
        raise UserError("data.columns: timestamp and order are both given; one of them orders the interactions")
    if ordered and columns.timestamp is None and columns.order is None:
        path = Path(paths[0])
        available, taken = columns_of(path), set(columns.model_dump().values())  # a slot is no order
        if TIMESTAMP in available and TIMESTAMP not in taken:
            columns = columns.model_copy(update={"timestamp": TIMESTAMP})
        elif POSITION in available and POSITION not in taken:
            columns = columns.model_copy(update={"order": POSITION})
        else:
            raise UserError(
                f"{path}: which column orders the interactions? set data.columns.timestamp or data.columns.order to one"
                f" of {listed(available)}"
            )
    fields = {
        USER_ID: Field(columns.user, True, AN_ID, identifiers),
        ITEM_ID: Field(columns.item, True, AN_ID, identifiers),
    }
    if columns.timestamp is not None:
        times = Times()
        fields[TIMESTAMP] = Field(columns.timestamp, True, times.expected, times.read, times)
    elif columns.order is not None:
        fields[POSITION] = Field(columns.order, True, "a number", numbers)
    if columns.basket is not None:
        fields[BASKET] = Field(columns.basket, True, AN_ID, identifiers)
    if columns.quantity is not None:
        fields[QUANTITY] = Field(columns.quantity, False, "a number", numbers)
    if columns.event is not None:
        fields[EVENT] = Field(columns.event, False, "text", lambda values: values.cast(pl.String))
    if columns.rating is not None:
        fields[RATING] = Field(columns.rating, False, "a number", lambda values: numbers(values).cast(pl.Float64))
    if columns.clicked is not None:
        fields[CLICKED] = Field(columns.clicked, False, "1, 0, true, false or nothing", booleans)
    if columns.clicked is not None or rated:
        if columns.slot is not None:
            fields[SLOT] = Field(columns.slot, False, "a whole number >= 0", slots)
        if columns.propensity is not None:
            fields[PROPENSITY] = Field(
                columns.propensity, False, "a probability", lambda values: numbers(values, 0.0, 1.0).cast(pl.Float64)
            )
    return fields
