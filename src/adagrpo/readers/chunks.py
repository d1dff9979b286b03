"""Read logs in chunks of whole records.

CSV and JSONL values stay text, as type inference hides bad ones.
"""

from __future__ import annotations

import csv
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from adagrpo.errors import UserError
from adagrpo.readers.cells import id_value, numbers
from adagrpo.readers.formats import (
    MAX_EXPANSION,
    SCHEMA_BYTES,
    UNNAMED,
    columns_of,
    csv_header,
    expansion_limit,
    explodes,
    kind_of,
    nested_names,
    one_line,
    path_of,
    read_blocks,
    reading,
    require,
)

CHUNK_BYTES = 2**24  # of CSV and JSONL
CHUNK_ROWS = 2**20  # of Parquet
RECORD_LINES = 100  # a quoted field that goes on for longer is taken for an unclosed quote


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_decode = json.JSONDecoder(parse_constant=_no_number).decode
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

csv.field_size_limit(sys.maxsize)  # a long text that is not read is no reason to refuse a row


class Chunk(NamedTuple):
    """Consecutive rows of a log."""

    first: int  # the row of the file that the chunk begins with; 0 is the first row of data
    table: pl.DataFrame  # the requested columns
    problem: pl.Series | None  # what is wrong with a row as a whole, null where nothing is

    def before(self, row: int) -> Chunk:
        """Drop rows from file row `row` on."""
        rows = max(0, row - self.first)
        return Chunk(self.first, self.table.head(rows), None if self.problem is None else self.problem.head(rows))


def read_chunks(
    path: Path, columns: Sequence[str], ids: Sequence[str] = (), max_expansion: float = MAX_EXPANSION
) -> Iterator[Chunk]:
    """Read distinct columns of a log, typed from Parquet, else text, in one chunk or more.

    `user.id` is a nested field unless a column has that name; in id columns a JSON `true` is invalid. UserError for a
    missing or repeated column, or an unreadable or too large file.
    """
    kind, first = kind_of(path), 0
    require(path, columns, columns_of(path))
    read: _Reader = {"Parquet": _parquet, "CSV": _csv, "JSONL": _jsonl}[kind]
    with reading(path, kind):
        for table, problem in read(path, columns, ids, max_expansion):
            if len(table) or first == 0:
                yield Chunk(first, table, problem)
            first += len(table)


_Parsed = tuple[pl.DataFrame, pl.Series | None]
_Reader = Callable[[Path, Sequence[str], Sequence[str], float], Iterator[_Parsed]]


def _parquet(path: Path, columns: Sequence[str], ids: Sequence[str], max_expansion: float) -> Iterator[_Parsed]:
    file = pl.scan_parquet(path, glob=False)
    table = file.select(named_fields(columns, file.collect_schema().names()))
    end = int(table.select(pl.len()).collect().item())
    limit, unpacked = expansion_limit(path, max_expansion), 8 * end * len(columns)
    if unpacked > limit:
        raise explodes(path, max_expansion)
    for start in range(0, max(1, end), CHUNK_ROWS):
        chunk = table.slice(start, CHUNK_ROWS).collect()
        texts = [int(values.str.len_bytes().cast(pl.Int64).sum()) for values in chunk if values.dtype == pl.String]
        unpacked += sum(texts)  # equal ones share their bytes until something is done with them
        if unpacked > limit:
            raise explodes(path, max_expansion)
        yield chunk, None


def named_fields(columns: Sequence[str], known: Sequence[str]) -> list[pl.Expr]:
    """Select columns by name, or else nested fields by path."""
    fields = []
    for name in columns:
        first, *rest = [name] if name in known else path_of(name)
        fields.append(functools.reduce(lambda field, part: field.struct.field(part), rest, pl.col(first)).alias(name))
    return fields


def lines_of(block: bytes) -> list[str]:
    """Split text into lines, without line ends."""
    lines = block.decode("utf-8", errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def json_lines(block: bytes) -> list[str]:
    """Split a block of JSON lines, skipping blank ones."""
    return [line for line in lines_of(block) if line.strip()]


def _jsonl(path: Path, columns: Sequence[str], ids: Sequence[str], max_expansion: float) -> Iterator[_Parsed]:
    nothing = pl.lit(f"not a JSON object with any of the fields {', '.join(columns)}")
    for block, _ in read_blocks(path, CHUNK_BYTES, max_expansion):
        table, problem = json_fields(json_lines(block), columns, ids)
        empty = pl.when(pl.all_horizontal(pl.all().is_null())).then(nothing)
        yield table, table.select(pl.coalesce(pl.lit(problem), empty)).to_series()


def json_fields(lines: Sequence[str], columns: Sequence[str], ids: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
    """Read fields of JSON lines as text, null without an object, and type problems."""
    fields: dict[str, list[str | None]] = {name: [] for name in columns}
    problems: list[str | None] = []
    problem: str | None
    for line in lines:
        try:
            record, problem = _decode(line), None
            if r"\ud" in line or r"\uD" in line:
                _encode(record).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError):
            record, problem = {}, None
        record = record if isinstance(record, dict) else {}
        for name, texts in fields.items():
            value = _value(record, name)
            if type(value) is int:
                value = str(value)
            elif isinstance(value, float) and name in ids:
                whole = id_value(value)
                problem = problem if whole is not None else f"{name} is {value}, expected a whole number or text"
                value = None if whole is None else str(whole)
            elif value is not None and not isinstance(value, str):
                if isinstance(value, dict | list) or (isinstance(value, bool) and name in ids):
                    problem = f"{name} is of type {type(value).__name__}"
                value = _encode(value)
            texts.append(value)
        problems.append(problem)
    return pl.DataFrame(fields, schema=dict.fromkeys(columns, pl.String)), pl.Series(problems, dtype=pl.String)


def _value(record: Any, name: str) -> Any:
    value = record.get(name)
    if value is not None:
        return value
    for part in path_of(name):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _csv(path: Path, columns: Sequence[str], ids: Sequence[str], max_expansion: float) -> Iterator[_Parsed]:
    names, separator = csv_header(path)
    header = carried = b""
    for block, last in read_blocks(path, CHUNK_BYTES, max_expansion):
        whole = (carried + block).rstrip(b"\r\n") if last else carried + block
        if not header:
            whole = whole.lstrip(b"\r\n")
            named, spanned = _record(lines_of(whole), 0, len(names), separator)
            for name in columns:
                count = (named or []).count(name)
                if name and count > 1:
                    advice = UNNAMED if numbers(pl.Series([name])).count() else "rename the others"
                    raise UserError(f"{path}: the header names '{one_line(name)}' {count} times; {advice}")
            lines = whole.split(b"\n", spanned)
            header, whole = b"\n".join(lines[:spanned]).rstrip(b"\r") + b"\n", b"".join(lines[spanned:])
        table, carried = _fast(header, whole, columns, separator), b""  # where each line is one record
        if table is not None:
            yield table, None
            continue
        texts = lines_of(whole)
        stop = len(texts) if last else len(texts) - RECORD_LINES  # so many lines may be part of a record
        table, problem, read = _one_by_one(texts, stop, names, columns, separator)
        carried = b"" if last else b"\n".join(whole.split(b"\n")[read:])
        yield table, problem


def _fast(header: bytes, block: bytes, columns: Sequence[str], separator: str = ",") -> pl.DataFrame | None:
    """Parse the block; None if any line may not be one record."""
    lines = block.count(b"\n") + (not block.endswith(b"\n") and bool(block))
    outside = b'[^%s\r\n"]' % re.escape(separator.encode())
    if b'"' in block and (
        re.search(outside + b'"' + outside, block) or any(line.count(b'"') % 2 for line in block.split(b"\n"))
    ):
        return None
    try:
        table = pl.read_csv(header + block, separator=separator, infer_schema=False, encoding="utf8-lossy")
    except pl.exceptions.PolarsError:
        return None
    return table.select(columns) if len(table) == lines else None


def _one_by_one(
    lines: Sequence[str], stop: int, names: Sequence[str], columns: Sequence[str], separator: str = ","
) -> tuple[pl.DataFrame, pl.Series, int]:  # records before line `stop`, their problems, the lines read
    indices = {name: names.index(name) for name in columns}
    values: dict[str, list[str | None]] = {name: [] for name in columns}
    problems: list[str | None] = []
    start = 0
    while start < stop:
        record, spanned = _record(lines, start, len(names), separator)
        problem = None if record is not None else "has a quote that is not closed or not escaped"
        if record is not None and any(record[len(names) :]):
            problem = f"has {len(record)} fields, the header names {len(names)}"
        problems.append(problem)
        for name, index in indices.items():
            values[name].append(record[index] if record is not None and index < len(record) else None)
        start += spanned
    table = pl.DataFrame(values, schema=dict.fromkeys(columns, pl.String))
    return table, pl.Series(problems, dtype=pl.String), start


def _record(lines: Sequence[str], start: int, width: int, separator: str) -> tuple[list[str] | None, int]:
    """Return a record's fields, None if malformed, and its number of lines.

    A multi-line record with a wrong number of fields counts as an unclosed quote.
    """
    if '"' not in lines[start]:
        return lines[start].split(separator), 1
    following = (f"{line}\n" for line in lines[start : start + RECORD_LINES])
    reader = csv.reader(following, delimiter=separator, strict=True)
    try:
        record = next(reader)
    except csv.Error:
        return None, 1
    if reader.line_num > 1 and len(record) != width:
        return None, 1
    return record, reader.line_num


def read_table(
    path: Path, columns: Sequence[str], max_expansion: float = MAX_EXPANSION, ids: Sequence[str] = ()
) -> pl.DataFrame:
    """Read columns, typed as in the file; CSV columns and ids of JSON lines are text, empty fields null.

    UserError for a missing column, or a malformed or too large file.
    """
    kind, columns = kind_of(path), list(dict.fromkeys(columns))
    tables: list[pl.DataFrame] = []
    if kind == "JSONL":
        text, rows = [], 0
        with reading(path, kind):
            for block, _ in read_blocks(path, SCHEMA_BYTES, max_expansion):
                text.append(block)
                lines = json_lines(block)
                table, problems = json_fields(lines, ids, ids)  # type inference changes long numbers
                _refuse(path, rows, problems)
                tables.append(table)
                rows += len(lines)
            found = pl.scan_ndjson(b"".join(text), infer_schema_length=None)
            schema = found.collect_schema()
            require(path, columns, list(nested_names(schema)))
            frame = found.select(named_fields(columns, schema.names())).collect()
        if len(frame) != rows:
            raise UserError(f"{path}: {rows} lines hold {len(frame)} JSON objects; each line is one row")
        return frame.with_columns(pl.concat(tables)) if ids else frame
    for first, table, problem in read_chunks(path, columns, max_expansion=max_expansion):
        _refuse(path, first, problem)
        tables.append(table)
    table = pl.concat(tables)
    if kind == "Parquet":
        return table
    # a truncated CSV file ends in too few fields and no line end
    *_, (end, _) = read_blocks(path, SCHEMA_BYTES, max_expansion)
    line, (names, separator) = lines_of(end)[-1], csv_header(path)
    if not end.endswith(b"\n") and line.count('"') % 2 == 0:  # else it is the end of a row of several lines
        fields = len(next(csv.reader([line], delimiter=separator)))
        if fields < len(names):
            what = f"has {fields} of {len(names)} fields and no end of a line; the file was cut off"
            raise UserError(f"{path}, row {len(table)}: {what}")
    return table.with_columns(pl.all().replace("", None))


def _refuse(path: Path, first: int, problem: pl.Series | None) -> None:
    if problem is not None and problem.count():
        row = int(problem.is_not_null().arg_max() or 0)
        raise UserError(f"{path}, row {first + row + 1}: {problem[row]}")
