"""Read whole tables, such as item tables, in which an unreadable row is an error."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from adagrpo.data.logs.chunks import json_fields, json_lines, lines_of, named_fields, read_chunks
from adagrpo.data.logs.formats import SCHEMA_BYTES, csv_header, kind_of, nested_names, reading, require
from adagrpo.data.logs.unpacking import MAX_EXPANSION, read_blocks
from adagrpo.errors import UserError


def read_table(
    path: Path, columns: Sequence[str], max_expansion: float = MAX_EXPANSION, ids: Sequence[str] = ()
) -> pl.DataFrame:
    """Read columns of a table, typed as in the file; CSV columns are text, empty fields null.

    Args:
        columns: `product.sku` is a nested field unless a column has that name.
        ids: id columns, which JSON lines yield as text.

    Raises:
        UserError: a missing column, or a malformed or too large file.
    """
    kind, columns = kind_of(path), list(dict.fromkeys(columns))
    if kind == "JSONL":
        return _read_json(path, columns, max_expansion, list(ids))
    tables = []
    for first, table, problem in read_chunks(path, columns, max_expansion=max_expansion):
        _refuse(path, first, problem)
        tables.append(table)
    table = pl.concat(tables)
    if kind == "Parquet":
        return table
    _refuse_cut(path, len(table), max_expansion)
    return table.with_columns(pl.all().replace("", None))


def _refuse_cut(path: Path, rows: int, max_expansion: float) -> None:
    """A truncated CSV file ends in too few fields and no line end."""
    *_, (end, _) = read_blocks(path, SCHEMA_BYTES, max_expansion)
    line, (names, separator) = lines_of(end)[-1], csv_header(path)
    if end.endswith(b"\n") or line.count('"') % 2:  # of a row of several lines it is the end
        return
    fields = len(next(csv.reader([line], delimiter=separator)))
    if fields < len(names):
        what = f"has {fields} of {len(names)} fields and no end of a line; the file was cut off"
        raise UserError(f"{path}, row {rows}: {what}")


def _read_json(path: Path, columns: Sequence[str], max_expansion: float, ids: list[str]) -> pl.DataFrame:
    """Ids are read as text: type inference changes long numbers."""
    text, tables, rows = [], [], 0
    with reading(path, "JSONL"):
        for block, _ in read_blocks(path, SCHEMA_BYTES, max_expansion):
            text.append(block)
            lines = json_lines(block)
            table, problem = json_fields(lines, ids, ids)
            _refuse(path, rows, problem)
            tables.append(table)
            rows += len(lines)
        found = pl.scan_ndjson(b"".join(text), infer_schema_length=None)
        schema = found.collect_schema()
        require(path, columns, list(nested_names(schema)))
        frame = found.select(named_fields(columns, schema.names())).collect()
    if len(frame) != rows:
        raise UserError(f"{path}: {rows} lines hold {len(frame)} JSON objects; each line is one row")
    return frame.with_columns(pl.concat(tables)) if ids else frame


def _refuse(path: Path, first: int, problem: pl.Series | None) -> None:
    if problem is not None and problem.count():
        row = int(problem.is_not_null().arg_max() or 0)
        raise UserError(f"{path}, row {first + row + 1}: {problem[row]}")
