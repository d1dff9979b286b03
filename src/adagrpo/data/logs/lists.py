"""Detect lists written as text, `[1, 2]` or `a,b,c`, in an id column, where each would become one item.

Titles may look alike, so most values must be bracketed lists, or mostly unique lists of words with one separator, whose
repeated parts move, unlike those of `brand,model,size`.
"""

from __future__ import annotations

import polars as pl

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
    """Return the row, from 0, of the first list, if the id column mostly holds lists.

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
        if _are_lists(known, mark, word):
            return int(head.str.contains(mark, literal=True).fill_null(False).arg_max() or 0)
    return None


def _are_lists(values: pl.Series, mark: str, word: str) -> bool:
    parts = values.str.split(mark).list.eval(pl.element().str.strip_chars().replace("", None).drop_nulls())
    words = (parts.list.len() > 1) & parts.list.eval(pl.element().str.contains(word)).list.all()
    if not _most(words) or values.n_unique() < MOST * len(values):
        return False
    positions = parts.list.eval(pl.int_range(pl.len()))
    located = pl.DataFrame({"part": parts, "position": positions}).explode("part", "position")
    again = located.group_by("part").agg(pl.len(), pl.col("position").n_unique()).filter(pl.col("len") > 1)
    if again.is_empty():
        return parts.list.len().n_unique() > 1
    return int((again["position"] > 1).sum()) >= MOVES * len(again)


def _most(true: pl.Series) -> bool:
    return int(true.sum()) >= MOST * len(true)
