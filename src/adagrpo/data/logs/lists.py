"""Lists that are written as text, `[1, 2]` or `a,b,c`, in a column of single ids: all of a list would be one item.

A real id may hold brackets and commas, such as a title. So a column is judged and not a value: most of its values have
to be in brackets with something between their parts, or to be words with one and the same mark between them. Of the
latter most have to be written once, since items come again and lists hardly do; and parts that come again have to do so
at other places, where those of `brand,model,size` stay at theirs.
"""

from __future__ import annotations

import polars as pl

__all__ = ["ONE_EACH", "first_list"]

ONE_EACH = "a row is one item: write a row for each item of the list"
JUDGED = 1000  # values, the first of a file
MOST = 0.9  # of the values
BRACKETS = r"^(\[.*[\s,;|].*\]|\(.*[\s,;|].*\)|\{[^:]*[\s,;|][^:]*\})$"
ONE_IN_BRACKETS = r"^[\[({][^\s,;|:]*[\])}]$"  # a list of one, or of none
MOVES = 0.25  # of the parts that are written more than once, at more than one place; in a list of two half of them
MARKS = (",", ";", "|", " ")
WORD = r"^[\w.:/-]+$"
NUMBERED = r"\d"  # what words have to hold that blanks separate, unlike those of a title


def first_list(values: pl.Series) -> int | None:
    """The row of the first list, counted from 0, in a column of ids most of whose values are lists; None in others.

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
    written = head.str.contains(BRACKETS).fill_null(False)
    if written.any() and _most(known.str.contains(BRACKETS) | known.str.contains(ONE_IN_BRACKETS)):
        return int(written.arg_max() or 0)
    for mark in MARKS:
        if _most(known.str.contains(mark, literal=True)) and _are_lists(known, mark):
            return int(head.str.contains(mark, literal=True).fill_null(False).arg_max() or 0)
    return None


def _are_lists(values: pl.Series, mark: str) -> bool:
    """Whether most texts are words with a mark between them, and none of them is a composite id."""
    if values.n_unique() < MOST * len(values):
        return False
    rows = pl.DataFrame({"row": pl.int_range(len(values), eager=True), "word": values.str.split(mark)})
    words = rows.explode("word").with_columns(pl.col("word").str.strip_chars()).filter(pl.col("word") != "")
    fits = pl.col("word").str.contains(WORD)
    if mark == " ":
        fits = fits & pl.col("word").str.contains(NUMBERED)
    judged = words.group_by("row").agg(fits.all().alias("fits"), pl.len().alias("words"))
    if not _most(judged["fits"] & (judged["words"] > 1)):
        return False
    placed = words.with_columns(place=pl.int_range(pl.len()).over("row"))
    again = placed.group_by("word").agg(pl.len().alias("times"), pl.col("place").n_unique().alias("places"))
    again = again.filter(pl.col("times") > 1)
    if len(again) == 0:
        return judged["words"].n_unique() > 1
    return int((again["places"] > 1).sum()) >= MOVES * len(again)


def _most(true: pl.Series) -> bool:
    return int(true.sum()) >= MOST * len(true)
