"""Tables beside the logs, read whole: of items, of a judge's exposures, of ids that leave a catalogue.

A value is typed as in the file; those of a CSV file are text, and ids are what they are in a log. A row that cannot be
read ends it: there is no such thing as an item table without some of its items.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from adagrpo.data.logs.chunks import json_fields, lines_of, of_struct, read_chunks
from adagrpo.data.logs.formats import (
    SCHEMA_BYTES,
    header_of,
    kind_of,
    path_of,
    reading,
    require,
    separator_of,
    struct_names,
)
from adagrpo.data.logs.unpacking import (
    MAX_EXPANSION,
    UTF_16,
    check_parquet,
    encoding_of,
    expansion_limit,
    explodes,
    read_blocks,
    text_bytes,
)
from adagrpo.errors import UserError

__all__ = ["read_table"]


def read_table(
    path: Path, columns: Sequence[str], max_expansion: float = MAX_EXPANSION, ids: Sequence[str] = ()
) -> pl.DataFrame:
    """Some columns of a table, typed as in the file; those of a CSV file are text.

    Args:
        path: see `adagrpo.data.logs.formats.kind_of`.
        columns: their names; `product.sku` is the field `sku` of `product` where no column is called so.
        max_expansion: to how many times its size a compressed file may unpack.
        ids: columns of ids, which of JSON lines come as text, as in a log.

    Raises:
        UserError: the file or a column is missing, the file or one of its records is malformed, a line is too long, or
            more than `max_expansion` times the file would unpack.
    """
    kind, columns = kind_of(path), list(dict.fromkeys(columns))
    if kind == "CSV":
        return _text(path, columns, max_expansion)
    with reading(path, kind):
        if kind == "Parquet":
            table = pl.scan_parquet(path, glob=False)
        else:
            table = pl.scan_ndjson(_checked(path, max_expansion), infer_schema_length=None)
        schema = dict(table.collect_schema())
    require(path, columns, struct_names(schema))
    paths = {name: [name] if name in schema else path_of(name) for name in columns}
    with reading(path, kind):
        if kind == "Parquet":
            check_parquet(path, [place[0] for place in paths.values()], max_expansion)
        frame = table.select(of_struct(place).alias(name) for name, place in paths.items()).collect()
        if kind == "JSONL" and ids:
            frame = frame.with_columns(_json_ids(path, list(ids), len(frame), max_expansion))
    if kind == "Parquet" and text_bytes(frame) > expansion_limit(path, max_expansion):
        raise explodes(path, max_expansion)
    return frame


def _text(path: Path, columns: Sequence[str], max_expansion: float) -> pl.DataFrame:
    """Columns of a CSV file, whose records are told as those of a log are; an empty field is null."""
    tables = []
    for first, table, problem in read_chunks(path, columns, max_expansion=max_expansion):
        _refuse(path, first, problem)
        tables.append(table.with_columns(pl.all().replace("", None)))
    found = pl.concat(tables)
    _refuse_cut(path, len(found), max_expansion)
    return found


def _refuse_cut(path: Path, rows: int, max_expansion: float) -> None:
    """Refuse a CSV file that ends within a row: its last line has no end, and fewer fields than the header."""
    *_, (end, _) = read_blocks(path, SCHEMA_BYTES, max_expansion)
    line = end[end.rfind(b"\n") + 1 :].decode("utf-8", errors="replace")
    if not rows or not line or line.count('"') % 2:  # of a row of several lines it is the end
        return
    fields, names = len(next(csv.reader([line], delimiter=separator_of(path)))), len(header_of(path))
    if fields < names:
        raise UserError(
            f"{path}, row {rows}: has {fields} of {names} fields and no end of a line; the file was cut off"
        )


def _json_ids(path: Path, ids: list[str], rows: int, max_expansion: float) -> pl.DataFrame:
    """Columns of ids of JSON lines: a reader that types them reads long numbers, and those beside text, as others."""
    tables, first = [], 0
    for block, _ in read_blocks(path, SCHEMA_BYTES, max_expansion):
        table, problem = json_fields([line for line in lines_of(block) if line.strip()], ids, ids)
        _refuse(path, first, problem)
        tables.append(table)
        first += len(table)
    if first != rows:
        raise UserError(f"{path}: {first} lines hold {rows} JSON objects; each line is one row")
    return pl.concat(tables)


def _refuse(path: Path, first: int, problem: pl.Series | None) -> None:
    """Name the first row, of some that begin with row `first`, that something is wrong with."""
    if problem is not None and problem.count():
        row = int(problem.is_not_null().arg_max() or 0)
        raise UserError(f"{path}, row {first + row + 1}: {problem[row]}")


def _checked(path: Path, max_expansion: float) -> str | bytes:
    """A text file whose lines are not too long, its name as a pattern; its text where it is compressed or UTF-16."""
    blocks = read_blocks(path, SCHEMA_BYTES, max_expansion)
    if path.name.lower().endswith(".gz") or encoding_of(path) == UTF_16:
        return b"".join(block for block, _ in blocks)
    for _ in blocks:
        pass
    return re.sub(r"([*?\[])", r"[\1]", str(path))
