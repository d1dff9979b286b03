"""Files of users to recommend to, with their items, if given, oldest first.

    {"user_id": "u7", "history": [3, 17, 4]}        JSONL, and Parquet with a list column
    u7,3 17 4                                       CSV: ids separated by spaces, or a JSON list

They are read in parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from adagrpo.data.columns import USER_ID
from adagrpo.errors import UserError
from adagrpo.readers.cells import id_value
from adagrpo.readers.chunks import read_chunks
from adagrpo.readers.formats import columns_of, kind_of, path_of, read_blocks, reading, require

HISTORY = "history"
BLOCK_BYTES = 2**22

ItemId = int | str


class UserHistories(NamedTuple):
    """A batch of users, in the order of the file."""

    users: list[ItemId]
    histories: list[list[ItemId]] | None  # None: the file has none


def read_histories(path: Path, size: int, *, user: str = USER_ID, history: str = HISTORY) -> Iterator[UserHistories]:
    """Read a file of users, `size` at a time; UserError for a missing file or column, or a malformed row."""
    columns = columns_of(path)
    require(path, [user], columns)
    known = history in columns
    users: list[ItemId] = []
    histories: list[list[ItemId]] = []
    for number, one, items in _rows(path, user, history, known):
        name = id_value(one)
        if name is None or not str(name).strip():
            raise UserError(f"{path}, row {number}: {user} is {one!r}; expected an id, a text or a whole number")
        ids = [id_value(item) for item in items] if isinstance(items, list) else [None]
        if known and None in ids:
            found = " ".join(repr(items).split())
            found = found if len(found) <= 80 else found[:80] + "..."
            raise UserError(f"{path}, row {number}: {history} is {found}; expected a list of item ids")
        users.append(name)
        histories.append([item for item in ids if item is not None])
        if len(users) == size:
            yield UserHistories(users, histories if known else None)
            users, histories = [], []
    if users:
        yield UserHistories(users, histories if known else None)


def about_how_many(path: Path) -> int:
    """Count rows, or lines of a text file, for progress."""
    kind = kind_of(path)
    with reading(path, kind):
        if kind == "Parquet":
            return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
        return max(0, sum(block.count(b"\n") for block, _ in read_blocks(path, BLOCK_BYTES)) - (kind == "CSV"))


def _rows(path: Path, user: str, history: str, known: bool) -> Iterator[tuple[int, Any, Any]]:  # row from 1
    kind = kind_of(path)
    if kind == "JSONL":
        with reading(path, kind):
            number, fields = 0, f"{user} and {history}" if known else user
            for block, _ in read_blocks(path, BLOCK_BYTES):
                for line in block.decode("utf-8", errors="replace").split("\n"):
                    if not line.strip():
                        continue
                    number += 1
                    try:
                        record = json.loads(line)
                        one, items = _field(record, user), _field(record, history) if known else None
                    except (ValueError, RecursionError, TypeError, KeyError) as error:
                        raise UserError(f"{path}, row {number}: not a JSON object with {fields}") from error
                    if not known and history in record:
                        late = f"has {history}, which the first rows have not; give it to all or none"
                        raise UserError(f"{path}, row {number}: {late}")
                    yield number, one, items
        return
    for chunk in read_chunks(path, [user, history] if known else [user]):
        problems = None if chunk.problem is None else chunk.problem.to_list()
        for index, row in enumerate(chunk.table.iter_rows()):
            if problems is not None and problems[index] is not None:
                raise UserError(f"{path}, row {chunk.first + index + 1}: {problems[index]}")
            items = row[1] if known else None
            yield chunk.first + index + 1, row[0], _listed(items) if kind == "CSV" and known else items


def _field(record: Any, name: str) -> Any:
    if name in record:
        return record[name]
    for part in path_of(name):
        record = record[part]
    return record


def _listed(text: str | None) -> Any:
    """Parse the ids of a CSV cell.

    >>> _listed("3 17"), _listed('["a b", 4]'), _listed("")
    (['3', '17'], ['a b', 4], [])
    """
    if text is None or not text.lstrip().startswith("["):
        return (text or "").split()
    try:
        return json.loads(text)
    except ValueError:
        return text
