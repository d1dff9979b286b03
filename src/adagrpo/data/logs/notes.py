"""One-line notes on logs that can be read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

from adagrpo.data.logs.formats import columns_of, listed

ODD = r"[^!-~]|^0\d|^\d+\.0+$"  # an id without it is spelt as `_spelling` spells it
INVISIBLE = r"[\u{ad}\u{200b}-\u{200d}\u{2060}\u{feff}]"  # soft hyphen, zero-width characters, byte order mark
NUMBER = r"^0*(\d+?)(?:\.0+)?$"
SHOWN_SPELLINGS, SHOWN_CHARACTERS = 3, 40


def duplicates_note(count: int | None) -> str | None:
    """Return a note on exact duplicates, or None."""
    if not count:
        return None
    return (
        f"note: exact duplicates, of user, item and time: {count:,}, each of which counts again; to keep the first"
        " alone, --set data.drop_duplicates=true"
    )


def ids_note(users: pl.Series, items: pl.Series) -> str | None:
    """Return a note on ids that are probably one, spelled differently; or None.

    >>> users, items = pl.Series(["u1", "u1 ", "u2"]), pl.Series(["7", "07", "7.0", "8"])
    >>> ids_note(users, items).partition(": they")[0]
    "note: several spellings of 1 user such as 'u1', 'u1 ', of 1 item such as '07', '7', '7.0'"
    """
    parts = []
    for kind, ids in (("user", users), ("item", items)):
        groups = spellings(ids)
        if groups:
            shown = ", ".join(ascii(text[:SHOWN_CHARACTERS]) for text in groups[0][:SHOWN_SPELLINGS])
            parts.append(f"of {len(groups):,} {kind}{'s' * (len(groups) > 1)} such as {shown}")
    if not parts:
        return None
    return (
        f"note: several spellings {', '.join(parts)}: they differ by white space, invisible characters, Unicode form or"
        " the zeros of a number alone, and each counts as an id of its own; if they are the same, write one of them"
        " everywhere"
    )


def spellings(ids: pl.Series) -> list[list[str]]:
    """Group ids that differ only by white space, Unicode form, invisible characters or zeros, largest first."""
    if ids.dtype != pl.String:
        return []
    odd = ids.str.contains(ODD)
    if not odd.any():
        return []
    table = pl.DataFrame({"id": ids.filter(odd).unique()}).with_columns(spelling=_spelling(pl.col("id")))
    plain = pl.DataFrame({"id": ids.filter(~odd).unique()}).with_columns(spelling="id")
    table = pl.concat([table, plain.join(table, on="spelling", how="semi")])
    groups = table.group_by("spelling").agg(pl.col("id").sort(), pl.len()).filter(pl.col("len") > 1)
    return groups.sort("len", "spelling", descending=[True, False])["id"].to_list()


def _spelling(ids: pl.Expr) -> pl.Expr:
    visible = ids.str.normalize("NFC").str.replace_all(INVISIBLE, "")
    return visible.str.replace_all(r"\s+", " ").str.strip_chars().str.replace(NUMBER, "${1}")


def unread_note(path: Path, read: Collection[str]) -> str | None:
    """Return a note on the columns of an item table that nothing uses, or None."""
    names: Sequence[str] = columns_of(path)
    parents = {name.rpartition(".")[0] for name in names}
    unread = [name for name in names if name not in read and name not in parents]
    if not unread:
        return None
    return (
        f"note: not used of {path.name}: {listed(unread)}; they are kept, so that a reward may name them; one named in"
        " data.items.groups narrows lists, one in data.items.text or data.items.attributes describes items"
    )
