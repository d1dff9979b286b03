"""Lists that are written as text, `[1, 2]` or `a,b,c`, in a column of single ids: all of a list would be one item.

A real id may hold brackets and commas, such as a title. So a column is judged and not a value: most of its values have
to be in brackets with something between their parts, or to be words with one and the same mark between them. Of the
latter most have to be written once, since items come again and lists hardly do; and parts that come again have to do so
at other places, where those of `brand,model,size` stay at theirs.
"""

from __future__ import annotations

import polars as pl

ONE_EACH = "a row is one item: write a row for each item of the list"
JUDGED = 1000  # values, the first of a file
MOST = 0.9  # of the values
BRACKETS = r"^(\[.*[\s,;|].*\]|\(.*[\s,;|].*\)|\{[^:]*[\s,;|][^:]*\})$"
ONE_IN_BRACKETS = r"^[\[({][^\s,;|:]*[\])}]$"  # a list of one, or of none
MOVES = 0.25  # of the parts that are written more than once, at more than one place; in a list of two half of them
WORD = r"^[\w.:/-]+$"
NUMBERED = r"^[\w.:/-]*\d[\w.:/-]*$"  # what blanks separate holds a digit, unlike the words of a title
MARKS = {",": WORD, ";": WORD, "|": WORD, " ": NUMBERED}


def first_list(values: pl.Series) -> int | None:
    """Find the row of the first list, counted from 0, in a column of ids most of whose values are lists.

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
    """Whether most texts are words with a mark between them, and none of them is a composite id."""
    parts = values.str.split(mark).list.eval(pl.element().str.strip_chars().replace("", None).drop_nulls())
    words = (parts.list.len() > 1) & parts.list.eval(pl.element().str.contains(word)).list.all()
    if not _most(words) or values.n_unique() < MOST * len(values):
        return False
    places = parts.list.eval(pl.int_range(pl.len()))
    placed = pl.DataFrame({"part": parts, "place": places}).explode("part", "place")
    again = placed.group_by("part").agg(pl.len(), pl.col("place").n_unique()).filter(pl.col("len") > 1)
    if again.is_empty():
        return parts.list.len().n_unique() > 1
    return int((again["place"] > 1).sum()) >= MOVES * len(again)


def _most(true: pl.Series) -> bool:
    return int(true.sum()) >= MOST * len(true)
