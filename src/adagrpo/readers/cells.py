"""Parse ids, numbers and booleans of a log; null if invalid.

Nothing is repaired: a damaged id could be another valid one. The number `5.0` is the id 5; the text is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

BOOLEANS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
LONGEST_ID = 1000  # characters; a longer one is what an unclosed quote or a wrong delimiter has swallowed
UNREADABLE = (pl.Binary, pl.Object, pl.Duration)  # types of a Parquet column that are no value of a log
WHOLE = 2.0**53  # from which on two whole numbers may be one double
LAST_TIME = 9_223_372_036_854_774_784.0  # the largest double that fits into 64 bits


def blank_to_null(values: pl.Series) -> pl.Series:
    """Replace blank text and NaN by null."""
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        return where(values.str.strip_chars() != "", values)
    return values.fill_nan(None) if values.dtype.is_float() else values


def where(keep: pl.Series, values: pl.Series) -> pl.Series:
    """Replace values by null unless `keep`."""
    return pl.select(pl.when(pl.lit(keep)).then(pl.lit(values)).alias(values.name)).to_series()


def identifiers(values: pl.Series) -> pl.Series:
    """Parse ids: Int64, or String for text; null if damaged or too long."""
    if values.dtype == pl.String:
        damaged = values.str.contains("[\ufffd\\x00]") | (values.str.len_chars() > LONGEST_ID)
        return where(~damaged, values)
    if values.dtype.is_decimal():
        values = where(values == values.floor(), values).cast(pl.Int128, strict=False)
    if values.dtype in (pl.UInt64, pl.Int128, pl.UInt128):
        return integers_if_all(values.cast(pl.String))
    if values.dtype.is_float():
        values = where((values == values.floor()) & (values.abs() < WHOLE), values)
    if values.dtype.is_numeric():
        return values.cast(pl.Int64, strict=False)
    return pl.Series(values.name, [None] * len(values), dtype=pl.String)


def id_texts(values: pl.Series) -> pl.Series:
    """Convert ids to text, comparable across files.

    >>> id_texts(pl.Series([5.0, 5.5])).to_list(), id_texts(pl.Series(["5.0", " "])).to_list()
    (['5', None], ['5.0', None])
    """
    return identifiers(blank_to_null(values)).cast(pl.String)


def id_value(value: Any) -> int | str | None:
    """Convert a JSON value to an id, a text or an integer; None if invalid.

    >>> id_value("5.0"), id_value(5), id_value(5.0), id_value(5.5), id_value(True), id_value(10**30) == 10**30
    ('5.0', 5, 5, None, None, True)
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE:
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def integers_if_all(ids: pl.Series) -> pl.Series:
    """Cast strings to integers if lossless for all."""
    if ids.dtype != pl.String:
        return ids
    integers = ids.cast(pl.Int64, strict=False)
    return integers if integers.cast(pl.String).eq_missing(ids).all() else ids


def numbers(values: pl.Series, low: float = -np.inf, high: float = np.inf) -> pl.Series:
    """Parse numbers: Int64 if all valid ones are integers, else Float64."""
    if values.dtype == pl.Time:
        return pl.Series(values.name, [None] * len(values), dtype=pl.Int64)
    if values.dtype in (pl.Date, pl.Datetime):
        values = in_seconds(values.cast(pl.Datetime("us")).dt.epoch("us"))
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    real = values.cast(pl.Float64, strict=False)
    usable = (real.is_finite() & (real >= low) & (real <= high)).fill_null(False)
    if values.dtype == pl.String or values.dtype.is_integer():
        whole = values.cast(pl.Int64, strict=False)
        if (whole.is_not_null() | ~usable).all():
            return where(usable, whole)
    return where(usable, real)


def in_seconds(micros: pl.Series) -> pl.Series:
    """Convert to seconds: Int64 if all are whole, else Float64."""
    return micros // 1_000_000 if (micros % 1_000_000 == 0).all() else micros / 1_000_000


def slots(values: pl.Series) -> pl.Series:
    """Parse whole numbers from 0."""
    slots = numbers(values, 0.0, 2.0**31 - 1)
    return where(slots == slots.floor(), slots).cast(pl.Int32)


def booleans(values: pl.Series) -> pl.Series:
    """Parse 1, 0, true, false in any case."""
    text = values.cast(pl.String).str.strip_chars().str.to_lowercase()
    return text.replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)


ONE_EACH = "a row is one item: write a row for each item of the list"
JUDGED = 1000  # values, the first of a file
MOST = 0.9  # of the values
BRACKETS = r"^(\[.*[\s,;|].*\]|\(.*[\s,;|].*\)|\{[^:]*[\s,;|][^:]*\})$"
ONE_IN_BRACKETS = r"^[\[({][^\s,;|:]*[\])}]$"  # a list of one, or of none
MOVES = 0.25  # share of repeated parts that occur at more than one position; half of them in a list of two
WORD = r"^[\w.:/-]+$"
NUMBERED = r"^[\w.:/-]*\d[\w.:/-]*$"  # what blanks separate holds a digit, unlike the words of a title
MARKS = {",": WORD, ";": WORD, "|": WORD, " ": NUMBERED}


def first_list(values: pl.Series) -> int | None:
    """Return the row, from 0, of the first list, if an id column mostly holds lists as text, `[1, 2]` or `a,b,c`.

    Most values must be bracketed, or mostly unique lists of words with one separator, whose repeated parts move.

    >>> first_list(pl.Series(["", "[1, 2]", "[3]"])), first_list(pl.Series(["a,b", "b,c,a", "c,d"]))
    (1, 0)
    >>> first_list(pl.Series(["Lock, Stock", "Me, Myself and Irene"])), first_list(pl.Series(["[1]", "[2]"]))
    (None, None)
    """
    if values.dtype != pl.String:
        return None
    head = values.head(JUDGED).str.strip_chars().replace("", None)
    known = head.drop_nulls()
    if len(known) < 2:
        return None
    lists = head.str.contains(BRACKETS)
    if lists.any() and _most(known.str.contains(BRACKETS) | known.str.contains(ONE_IN_BRACKETS)):
        return int(lists.fill_null(False).arg_max() or 0)
    for mark, word in MARKS.items():
        parts = known.str.split(mark).list.eval(pl.element().str.strip_chars().replace("", None).drop_nulls())
        words = (parts.list.len() > 1) & parts.list.eval(pl.element().str.contains(word)).list.all()
        if not _most(words) or known.n_unique() < MOST * len(known):
            continue
        positions = parts.list.eval(pl.int_range(pl.len()))
        located = pl.DataFrame({"part": parts, "position": positions}).explode("part", "position")
        again = located.group_by("part").agg(pl.len(), pl.col("position").n_unique()).filter(pl.col("len") > 1)
        moved = int((again["position"] > 1).sum()) >= MOVES * len(again)
        if moved if len(again) else parts.list.len().n_unique() > 1:
            return int(head.str.contains(mark, literal=True).fill_null(False).arg_max() or 0)
    return None


def _most(true: pl.Series) -> bool:
    return int(true.sum()) >= MOST * len(true)
