"""Semantic IDs from files: a column of a Parquet table, or the token names of an index as other projects store them.

    {"7": ["<a_210>", "<b_231>", "<c_0>"], ..}        MiniOneRec's and LC-Rec's `*.index.json`
    <a_210><b_231><c_0> TAB title TAB 7               MiniOneRec's `info/*.txt`

In an index the code is the last number in a name; the rest is the same for all tokens of a level. Only a line feed ends
a line, as titles may contain U+2028.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.errors import UserError, first_of
from adagrpo.readers.cells import id_texts
from adagrpo.readers.chunks import read_table
from adagrpo.readers.formats import MAX_EXPANSION, one_line

LARGEST_CODE = 2**31 - 1  # codes are stored in 32 bits
NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
TOKEN = re.compile(r"<[^<>]*>")


def import_semantic_ids(
    path: Path, item_ids: pl.Series, *, column: str, id_column: str = "item_id", max_expansion: float = MAX_EXPANSION
) -> NDArray[np.int64]:
    """Read (V, L) int64 published codes, a column of a Parquet, in the order of the catalogue; collisions are kept.

    UserError if a column is missing, or an item, (V,) ids compared as text, does not have one row of L codes.
    """
    frame = read_table(path, [id_column, column], max_expansion)
    names = item_ids.cast(pl.String)
    published = pl.DataFrame({"id": id_texts(frame[id_column]), "sid": frame[column]})
    twice = published.filter(pl.col("id").is_duplicated() & pl.col("id").is_in(names.implode()))
    if len(twice):
        raise UserError(f"{path}: item {twice['id'][0]!r} has more than one row in column {id_column!r}; keep one")
    wanted = pl.DataFrame({"id": names})
    missing = wanted.join(published, on="id", how="anti", maintain_order="left")
    if len(missing):
        raise UserError(
            f"{path}: no row for item {first_of(missing['id'].to_list())} of {len(wanted)} items; "
            f"every item of the catalogue needs one (column {id_column!r})"
        )
    joined = wanted.join(published, on="id", how="left", maintain_order="left")
    codes = code_matrix(joined["sid"], joined["id"], f"{path}: column {column!r}")
    outside = np.flatnonzero(((codes < 0) | (codes > LARGEST_CODE)).any(axis=1))
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{path}: column {column!r}: item {joined['id'][row]!r} has {codes[row].tolist()}; "
            f"codes start at 0 and end at {LARGEST_CODE}"
        )
    return codes


def read_index(path: Path, item_ids: pl.Series) -> NDArray[np.int64]:
    """Read (V, L) int64 codes of a `.json` or `.txt` index in the order of the catalogue; collisions are kept.

    UserError if the file is missing or malformed, or an item is missing, repeated or named unlike the others.
    """
    entries = _read(path)
    index, counts = dict(entries), Counter(name for name, _ in entries)
    names = item_ids.cast(pl.String).to_list()
    twice = [name for name in names if counts[name] > 1]
    if twice:
        raise UserError(f"{path}: item {one_line(twice[0])!r} has more than one entry; keep one")
    missing = [name for name in names if name not in index]
    if missing:
        raise UserError(
            f"{path}: no entry for item {first_of(list(map(one_line, missing)))} of {len(names)} items; "
            "item ids in the logs and in the index must be the same"
        )
    around: list[tuple[str, str]] = []
    codes = []
    for name in names:
        parts = [NUMBER.fullmatch(token) for token in index[name]]
        ends = [(part[1], part[3]) for part in parts if part is not None]
        around = around or ends
        if ends != around or len(ends) != len(parts) or not parts:
            raise UserError(
                f"{path}: item {one_line(name)!r} has {one_line(str(index[name]))}; expected tokens such as "
                f"{', '.join(f'{before}7{after}' for before, after in around) or '<a_7>'}"
            )
        digits = [part[2].lstrip("0") or "0" for part in parts if part is not None]
        if any(len(number) > 10 or int(number) > LARGEST_CODE for number in digits):  # int() takes 4,300 digits
            raise UserError(
                f"{path}: item {one_line(name)!r} has {one_line(str(index[name]))}; codes end at {LARGEST_CODE}"
            )
        codes.append([int(number) for number in digits])
    return np.array(codes, dtype=np.int64) if codes else np.empty((0, 0), dtype=np.int64)


def _read(path: Path) -> list[tuple[str, list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8")
        if path.suffix == ".json":
            index = json.loads(text, object_pairs_hook=tuple)  # pairs, to detect repeated keys
            lists = [names for _, names in index] if isinstance(index, tuple) else [None]
            if not all(type(names) is list and all(type(name) is str for name in names) for names in lists):
                raise ValueError
            return list(index)
        rows = [line.split("\t") for line in text.split("\n") if line.strip()]
        if any(len(row) < 3 or "".join(TOKEN.findall(row[0])) != row[0].strip() for row in rows):
            raise ValueError
        return [(row[-1].strip(), TOKEN.findall(row[0])) for row in rows]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; tokenizer.published.path is below --data") from None
    except (ValueError, RecursionError) as error:
        form = '{"item id": ["<a_7>", ..], ..}' if path.suffix == ".json" else "<a_7><b_7>.. TAB title TAB item id"
        raise UserError(f"{path}: no index of Semantic IDs; expected {form}") from error


# lists (V,) list of integers; names (V,) what to call each row in an error
def code_matrix(lists: pl.Series, names: pl.Series, source: str) -> NDArray[np.int64]:
    """Return (V, L) codes of a column of lists of one length; UserError naming the first that has another."""
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    if not isinstance(lists.dtype, pl.List) or not lists.dtype.inner.is_integer():
        raise UserError(f"{source} holds {lists.dtype}; expected lists of integers")
    if len(lists) == 0:
        return np.empty((0, 0), dtype=np.int64)
    lengths = lists.list.len().fill_null(0).to_numpy()
    filled = lists.list.drop_nulls().list.len().fill_null(0).to_numpy()
    levels = int(np.bincount(lengths[lengths > 0], minlength=1).argmax())  # most frequent length above 0
    bad = np.flatnonzero((lengths != levels) | (filled != levels) | (filled == 0))
    if len(bad):
        row = int(bad[0])
        value = lists.slice(row, 1).to_list()[0]
        raise UserError(
            f"{source}: item {names[row]!r} has {value}; expected {levels or 'some'} integers, as most items have"
        )
    return lists.explode().to_numpy().astype(np.int64).reshape(len(lists), levels)
