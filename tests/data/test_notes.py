"""Ids that are spelt in several ways, repeats, and columns that are not read: one line each."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from adagrpo.data.logs.question import duplicates_note, ids_note, spellings, unread_note

SIX = ["u1", "u1 ", " u1", "\ufeffu1", "u1\u00a0", "u1\u200b"]
CASES = {
    "white space and invisible characters": (SIX, [sorted(SIX)]),
    "within an id": (["a\u00a0b", "a b", "a  b", "ab"], [["a  b", "a b", "a\u00a0b"]]),
    "forms of Unicode": (["caf\u00e9", "cafe\u0301", "cafe"], [["cafe\u0301", "caf\u00e9"]]),
    "zeros of numbers": (
        ["1", "01", "1.0", "10", "100", "0", "00", "0.0", "1.5", "1.50", "x01"],
        [["0", "0.0", "00"], ["01", "1", "1.0"]],
    ),
    "the largest first": (["a", "a ", "b", "b ", " b"], [[" b", "b", "b "], ["a", "a "]]),
    "one way each": (["u1", "u2", "\u00fc ", "007", "3.0"], []),
    "the same id again": (["u 1", "u 1", "01", "01"], []),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_that_are_one_when_written_plainly_are_a_group(name: str) -> None:
    ids, groups = CASES[name]
    assert spellings(pl.Series(ids)) == groups
    assert spellings(pl.Series(ids[::-1])) == groups


def test_whole_numbers_have_one_spelling_and_no_note() -> None:
    numbers = pl.Series([1, 2, 3])
    assert ids_note(numbers, numbers) is None and ids_note(pl.Series(["a"]), numbers) is None


def test_the_note_counts_groups_and_shows_what_cannot_be_seen() -> None:
    said = ids_note(pl.Series([*SIX, "v", "v "]), pl.Series([1, 2]))
    assert said is not None and "\n" not in said and said.isascii()
    assert said.startswith("note: several spellings of 2 users such as ' u1', 'u1', 'u1 ': they differ by white space")
    long = ids_note(pl.Series(["x" * 900, "x" * 900 + "\n"]), pl.Series([1]))
    assert long is not None and len(long) < 400


def test_repeats_are_said_where_there_are_some() -> None:
    assert duplicates_note(0) is None and duplicates_note(None) is None
    assert str(duplicates_note(1500)).startswith("note: exact duplicates, of user, item and time: 1,500, each")


def test_columns_of_an_item_table_that_are_not_read_are_named(tmp_path: Path) -> None:
    table = {"sku": ["a"], "title": ["t"], "price": [1.5], "made": [{"year": 1, "by": "b"}]}
    pl.DataFrame(table).write_parquet(tmp_path / "items.parquet")
    said = unread_note(tmp_path / "items.parquet", {"sku", "title", "made.by"})
    assert said is not None and said.startswith(
        "note: neither texts nor attributes of items.parquet: price, made.year; they are kept"
    )
    assert unread_note(tmp_path / "items.parquet", {"sku", "title", "price", "made.by", "made.year"}) is None
