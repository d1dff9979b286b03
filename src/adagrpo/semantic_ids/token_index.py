"""Semantic IDs as other projects store them: the token names of each item.

    {"7": ["<a_210>", "<b_231>", "<c_0>"], ..}        MiniOneRec's and LC-Rec's `*.index.json`
    <a_210><b_231><c_0> TAB title TAB 7               MiniOneRec's `info/*.txt`

The code is the last number in a name; the rest is the same for all tokens of a level. Only a line feed ends a line, as
titles may contain U+2028.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.logs.formats import one_line
from adagrpo.errors import UserError, first_of
from adagrpo.semantic_ids.catalog import LARGEST_CODE

NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
TOKEN = re.compile(r"<[^<>]*>")


def read_index(path: Path, item_ids: pl.Series) -> NDArray[np.int64]:
    """Read the codes of an index in the order of the catalogue; collisions are kept.

    Args:
        path: ends in `.json` or `.txt`.
        item_ids: (V,) ids of the catalogue, compared as text.

    Returns:
        (V, L) int64; `(0, 0)` for an empty catalogue.

    Raises:
        UserError: the file is missing or malformed, or an item is missing, repeated or named unlike the others.
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
            if not isinstance(index, tuple) or not all(_is_names(value) for _, value in index):
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


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
