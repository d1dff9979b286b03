"""The times of a log: numbers of any unit, which are kept as they are, or ISO 8601, which become seconds since 1970.

    2024-01-31    2024-01-31T23:59    2024-01-31 23:59:59.25    2024-01-31T23:59:59Z    2024-01-31 23:59:59+02:00

A time without an offset is read as UTC, which is counted. How the first time that can be read is written holds for all
of them: a column of both would have two units. A fraction is kept to the microsecond.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import polars as pl

from adagrpo.data.logs.cells import LAST_TIME, numbers, where

__all__ = ["UNITS", "Times", "iso_seconds", "moment", "unit_of"]

ISO = r"(?i)^\d{4}-\d\d-\d\d(?:[t ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?\s?(?:z|utc|[+-]\d\d(?::?\d\d)?)?)?$"
OFFSET = r"(?i)(?:z|utc|[+-]\d\d(?::?\d\d)?)$"  # of what follows the date
UNITS = {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
FROM, TO = 1e8, 1e11  # seconds between which a number is taken for a time since 1970: 1973 and 5138


class Times:
    """How the times of a log are written, and its times as numbers."""

    def __init__(self) -> None:
        self.kind: Literal["number", "ISO 8601"] | None = None  # known from the first time on
        self.naive = 0  # times without an offset

    @property
    def expected(self) -> str:
        """What a time would have to be."""
        if self.kind == "ISO 8601":
            return "a time from 1970 on such as 2024-01-31T23:59:59Z, like the first one"
        return "a number >= 0" if self.kind else "a number >= 0 or a time such as 2024-01-31T23:59:59Z"

    def read(self, values: pl.Series) -> pl.Series:
        """Some times as numbers, null where a value is none or is written unlike the first one."""
        dated = values.dtype in (pl.Date, pl.Datetime)
        read = numbers(values, 0.0, LAST_TIME)
        if self.kind is None:
            self.kind = self._kind_of(values, read, dated)
        if self.kind != "ISO 8601":
            return where(pl.repeat(False, len(read), eager=True), read) if dated and self.kind else read
        if dated:
            if not isinstance(values.dtype, pl.Datetime) or values.dtype.time_zone is None:
                self.naive += len(read) - read.null_count()
            return read
        if values.dtype != pl.String:
            return pl.Series(values.name, [None] * len(values), dtype=pl.Int64)
        seconds = iso_seconds(values)
        self.naive += int(_naive(values).filter(seconds.is_not_null()).sum())
        return seconds

    @staticmethod
    def _kind_of(values: pl.Series, read: pl.Series, dated: bool) -> Literal["number", "ISO 8601"] | None:
        """How the first value is written that can be read; of text that is both, a number."""
        if dated:
            return "ISO 8601" if read.null_count() < len(read) else None
        number = read.is_not_null().arg_max() if read.null_count() < len(read) else None
        if number == 0 or values.dtype != pl.String:
            return None if number is None else "number"
        times = iso_seconds(values).is_not_null()
        first = times.arg_max() if times.any() else None
        if first is not None and (number is None or first < number):
            return "ISO 8601"
        return None if number is None else "number"


def iso_seconds(values: pl.Series) -> pl.Series:
    """Text of ISO 8601 to seconds since 1970: Int64 if all are whole, else Float64; null where it is none.

    >>> iso_seconds(pl.Series(["1970-01-02", "1970-01-01T01:00:01+01:00", "1970-01-01 00:00:02 UTC"])).to_list()
    [86400, 1, 2]
    """
    text = values.str.strip_chars()
    text = where(text.str.contains(ISO), text)
    clock = text.str.slice(11, 5)
    clock = pl.select(pl.when(clock.is_null() | (clock != "")).then(clock).otherwise(pl.lit("00:00"))).to_series()
    second = text.str.slice(16, 3)
    second = pl.select(pl.when(second.str.starts_with(":")).then(second).otherwise(pl.lit(":00"))).to_series()
    whole = (text.str.slice(0, 10) + " " + clock + second).str.to_datetime(
        "%Y-%m-%d %H:%M:%S", strict=False, time_unit="us"
    )
    micros = whole.dt.epoch("us")
    rest = text.str.slice(16)
    if rest.str.contains(r"[.,]").any():
        fraction = rest.str.extract(r"[.,](\d+)").str.pad_end(6, "0").str.slice(0, 6)
        micros = micros + fraction.cast(pl.Int64).fill_null(0)
    if rest.str.contains(r"[+-]").any():
        sign = rest.str.extract(r"([+-])\d\d(?::?\d\d)?$").replace_strict({"+": -1, "-": 1}, default=0)
        hours = rest.str.extract(r"[+-](\d\d)(?::?\d\d)?$").cast(pl.Int64).fill_null(0)
        minutes = rest.str.extract(r"[+-]\d\d:?(\d\d)$").cast(pl.Int64).fill_null(0)
        micros = micros + sign * (60 * hours + minutes) * 60_000_000
    micros = where(micros >= 0, micros)
    exact = micros % 1_000_000 == 0
    seconds = micros // 1_000_000 if exact.fill_null(True).all() else micros / 1_000_000
    return seconds.alias(values.name)


def _naive(values: pl.Series) -> pl.Series:
    """Whether a time of ISO 8601 has no offset; a date alone has none."""
    return ~values.str.strip_chars().str.slice(11).str.contains(OFFSET)


def unit_of(low: float, high: float) -> str | None:
    """The unit in which numbers of a range would be times since 1970, by their size; None where they are in none.

    >>> unit_of(1.5e9, 1.7e9), unit_of(1.5e12, 1.7e12), unit_of(0, 500)
    ('seconds', 'milliseconds', None)
    """
    for unit, size in UNITS.items():
        if FROM * size <= low and high < TO * size:
            return unit
    return None


def moment(time: float, unit: str) -> str:
    """A time since 1970 as ISO 8601.

    >>> moment(86400_000, "milliseconds")
    '1970-01-02T00:00:00Z'
    """
    return datetime.fromtimestamp(int(time / UNITS[unit]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
