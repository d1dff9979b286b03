"""Logs with bad rows of twelve kinds in known places, in the three formats.

What a format cannot hold is written as what is left of it: a Parquet column holds no bytes that are not UTF-8, so a
mixed encoding is there the replacement character that a lossy converter has left.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

__all__ = ["AFTER", "ITEMS", "KINDS", "Written", "write_log"]

AFTER = 2_000_000_000  # rows of a later time are bad
ITEMS = 50
COLUMNS = ("user_id", "item_id", "timestamp", "note")
Record = tuple[str | None, str | None, str | None, str | None]

# what becomes of a good row, and a part of the reason it is rejected for
KINDS: dict[str, tuple[Callable[[Record], Record], str]] = {
    "missing": (lambda row: (row[0], row[1], None, row[3]), "timestamp is empty"),
    "wrong type": (lambda row: (row[0], row[1], "yesterday", row[3]), "timestamp is 'yesterday'"),
    "overflow": (lambda row: (row[0], row[1], "99999999999999999999", row[3]), "timestamp is '9999999999"),
    "future": (lambda row: (row[0], row[1], str(AFTER + 1), row[3]), "timestamp is 2000000001, after 2000000000"),
    "negative": (lambda row: (row[0], row[1], "-5", row[3]), "timestamp is '-5'"),
    "empty id": (lambda row: ("  ", *row[1:]), "user_id is empty"),
    "unknown item": (lambda row: (row[0], "nowhere", *row[2:]), "item_id is 'nowhere', which the item table lacks"),
    "duplicate": (lambda row: row, "repeats an earlier row"),
    "mixed encodings": (lambda row: ("M\ufffdller", *row[1:]), "user_id is 'M\ufffdller'"),
    "truncated": (lambda row: (row[0], None, None, None), ""),
    "wrong delimiter": (lambda row: (";".join(map(str, row)), None, None, None), ""),
    "huge field": (lambda row: ("x" * 100_000, *row[1:]), "user_id is 'xxxxxxxxxx"),
    "NUL": (lambda row: (f"{row[0]}\x00", *row[1:]), "holds a control character (U+0000)"),
}


class Written(NamedTuple):
    """What a log holds."""

    bad: dict[int, str]  # kind of each bad row; 0 is the first row of data
    good: list[tuple[str, str, int]]  # user, item, time of the others, in their order


def write_log(path: Path, rows: int, bad: int, seed: int = 0) -> Written:
    """Write a log of `rows` rows, `bad` of them bad, as the suffix of the path says (csv, jsonl or parquet)."""
    generator = np.random.default_rng(seed)
    kinds = list(KINDS)
    places = np.sort(generator.choice(np.arange(1, rows), bad, replace=False))
    order = generator.permutation(bad)
    chosen = {int(place): kinds[int(turn) % len(kinds)] for place, turn in zip(places, order, strict=True)}
    records: list[Record] = []
    good: list[Record] = []
    for n in range(rows):
        plain: Record = (
            f"u{generator.integers(200)}",
            f"i{generator.integers(ITEMS)}",
            str(10 * n),
            'a note, "quoted"',
        )
        kind = chosen.get(n)
        if kind is None:
            good.append(plain)
        elif kind == "duplicate":
            plain = good[int(generator.integers(len(good)))]
        records.append(plain if kind is None else KINDS[kind][0](plain))
    {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix](path, records, chosen)
    return Written(chosen, [(str(user), str(item), int(str(time))) for user, item, time, _ in good])


def _parquet(path: Path, records: list[Record], chosen: dict[int, str]) -> None:
    pl.DataFrame(records, schema=dict.fromkeys(COLUMNS, pl.String), orient="row").write_parquet(path)


def _csv(path: Path, records: list[Record], chosen: dict[int, str]) -> None:
    with path.open("wb") as file:
        file.write((",".join(COLUMNS) + "\n").encode())
        for n, record in enumerate(records):
            cells = ["" if cell is None else cell for cell in record]
            cells[3] = '"' + cells[3].replace('"', '""') + '"' if cells[3] else ""
            text = ",".join(cells)
            if chosen.get(n) == "truncated":
                text = text[: len(str(record[0])) + 3]
            elif chosen.get(n) == "wrong delimiter":
                text = str(record[0]).replace('"', "")
            file.write(text.replace("\ufffd", "\xfc").encode("latin-1" if "\ufffd" in text else "utf-8") + b"\n")


def _jsonl(path: Path, records: list[Record], chosen: dict[int, str]) -> None:
    with path.open("wb") as file:
        for n, record in enumerate(records):
            content = {name: cell for name, cell in zip(COLUMNS, record, strict=True) if cell is not None}
            text = json.dumps(content, ensure_ascii=False)
            if chosen.get(n) == "truncated":
                text = text[:-4]
            elif chosen.get(n) == "wrong delimiter":
                text = str(record[0])
            file.write(text.replace("\ufffd", "\xfc").encode("latin-1" if "\ufffd" in text else "utf-8") + b"\n")
