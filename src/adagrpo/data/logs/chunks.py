"""Read logs in chunks of whole records, to bound memory.

CSV and JSONL values come as text, as type inference hides bad ones.
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

from adagrpo.data.logs.cells import id_of, numbers
from adagrpo.data.logs.formats import (
    UNNAMED,
    columns_of,
    csv_header,
    kind_of,
    one_line,
    path_of,
    reading,
    require,
)
from adagrpo.data.logs.unpacking import MAX_EXPANSION, check_parquet, expansion_limit, explodes, read_blocks, text_bytes
from adagrpo.errors import UserError

CHUNK_BYTES = 2**24  # of CSV and JSONL
CHUNK_ROWS = 2**20  # of Parquet
RECORD_LINES = 100  # a quoted field that goes on for longer is taken for an unclosed quote
NESTED = r"^\s*[\[{]"
BOOLEAN = r"^(true|false)$"
REAL = r"^-?\d+(\.\d+([eE][+-]?\d+)?|[eE][+-]?\d+)$"  # a number that is not written as a whole one

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
    path: Path,
    columns: Sequence[str],
    ids: Sequence[str] = (),
    max_expansion: float = MAX_EXPANSION,
) -> Iterator[Chunk]:
    """Read some columns of a log: typed from Parquet, else as text; yields at least one chunk.

    Args:
        columns: distinct; `user.id` is a nested field unless a column has that name.
        ids: the id columns, in which a JSON `true` is invalid.

    Raises:
        UserError: a column is missing or repeated, or the file cannot be read or is too large.
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
    table = pl.scan_parquet(path, glob=False)
    fields = named_fields(columns, table.collect_schema().names())
    check_parquet(path, [field.meta.root_names()[0] for field in fields], max_expansion)
    limit = expansion_limit(path, max_expansion)
    table = table.select(fields)
    end = int(table.select(pl.len()).collect().item())
    total = 0
    for start in range(0, max(1, end), CHUNK_ROWS):
        chunk = table.slice(start, min(CHUNK_ROWS, end - start)).collect()
        text = text_bytes(chunk)
        total += text
        if total > limit:
            raise explodes(path, max_expansion)
        # equal texts share their bytes until something is done with them
        count = max(1, len(chunk) * CHUNK_BYTES // max(text, CHUNK_BYTES))
        for first in range(0, max(1, len(chunk)), count):
            yield chunk.slice(first, count), None


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


def json_fields(texts: Sequence[str], columns: Sequence[str], ids: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
    """Read fields of JSON lines as text, and problems with their types."""
    lines = pl.DataFrame({"line": pl.Series(texts, dtype=pl.String)})
    fields = [pl.coalesce(_match([name]), _match(path_of(name))).alias(name) for name in columns]
    return _typed(lines["line"], lines.select(fields), ids)


def _match(path: Sequence[str]) -> pl.Expr:
    steps = "".join(f"[{json.dumps(name, ensure_ascii=False)}]" for name in path)
    return pl.col("line").str.json_path_match(f"${steps}")


def _value(record: Any, name: str) -> Any:
    if record.get(name) is not None:
        return record[name]
    for part in path_of(name):
        record = record.get(part) if isinstance(record, dict) else record
    return record


def _typed(lines: pl.Series, table: pl.DataFrame, ids: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
    """Check the types of ambiguous text: nested values, booleans and non-integer numbers.

    An integer of more than 64 bits would come as a double, and `5.0` could be a number or a text.
    """
    suspect = [pl.col(name).str.contains(NESTED) for name in table.columns]
    suspect += [pl.col(name).str.contains(BOOLEAN) | pl.col(name).str.contains(REAL) for name in ids]
    rows = table.select(pl.any_horizontal(suspect).fill_null(False)).to_series().arg_true().to_list()
    problems: list[str | None] = [None] * len(table)
    exact = {name: table[name].to_list() for name in ids} if rows else {}
    for row in rows:
        record = json.loads(lines[row])
        for name in table.columns:
            value = _value(record, name)
            if isinstance(value, dict | list) or (isinstance(value, bool) and name in ids):
                problems[row] = f"{name} is of type {type(value).__name__}"
            elif name in ids and exact[name][row] is not None:
                exact[name][row] = id_of(value)
                if exact[name][row] is None:
                    problems[row] = f"{name} is {value}, expected a whole number or text"
    columns = [pl.Series(name, texts, dtype=pl.String) for name, texts in exact.items()]
    return table.with_columns(columns), pl.Series(problems, dtype=pl.String)


def _csv(path: Path, columns: Sequence[str], ids: Sequence[str], max_expansion: float) -> Iterator[_Parsed]:
    """Yield columns as text, and problems with whole records.

    The fast reader silently swallows everything between two unclosed quotes, so it needs one record per line.
    """
    names, separator = csv_header(path)
    header = carried = b""
    for block, last in read_blocks(path, CHUNK_BYTES, max_expansion):
        whole = (carried + block).rstrip(b"\r\n") if last else carried + block
        if not header:
            whole = whole.lstrip(b"\r\n")
            named, spanned = _record(lines_of(whole), 0, len(names), separator)
            _refuse_repeated(path, named or [], columns)
            lines = whole.split(b"\n", spanned)
            header, whole = b"\n".join(lines[:spanned]).rstrip(b"\r") + b"\n", b"".join(lines[spanned:])
        table, carried = _fast(header, whole, columns, separator), b""
        if table is not None:
            yield table, None
            continue
        texts = lines_of(whole)
        stop = len(texts) if last else len(texts) - RECORD_LINES  # so many lines may be part of a record
        table, problem, read = _one_by_one(texts, stop, names, columns, separator)
        carried = b"" if last else b"\n".join(whole.split(b"\n")[read:])
        yield table, problem


def _refuse_repeated(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    for name in columns:
        count = header.count(name)
        if name and count > 1:
            advice = UNNAMED if numbers(pl.Series([name])).count() else "rename the others"
            raise UserError(f"{path}: the header names '{one_line(name)}' {count} times; {advice}")


def _fast(header: bytes, block: bytes, columns: Sequence[str], separator: str = ",") -> pl.DataFrame | None:
    """Parse the block, or return None if any line may not be one record."""
    lines = block.count(b"\n") + (not block.endswith(b"\n") and bool(block))
    if b'"' in block and (_inner(separator).search(block) or any(line.count(b'"') % 2 for line in block.split(b"\n"))):
        return None
    try:
        table = pl.read_csv(header + block, separator=separator, infer_schema=False, encoding="utf8-lossy")
    except pl.exceptions.PolarsError:
        return None
    return table.select(columns) if len(table) == lines else None


@functools.cache
def _inner(separator: str) -> re.Pattern[bytes]:
    """Match a quote in the middle of a field."""
    outside = b'[^%s\r\n"]' % re.escape(separator.encode())
    return re.compile(outside + b'"' + outside)


def _one_by_one(
    lines: Sequence[str], stop: int, names: Sequence[str], columns: Sequence[str], separator: str = ","
) -> tuple[pl.DataFrame, pl.Series, int]:
    """Return the records that begin before line `stop`, their problems, and the number of lines."""
    places = {name: names.index(name) for name in columns}
    values: dict[str, list[str | None]] = {name: [] for name in columns}
    problems: list[str | None] = []
    start = 0
    while start < stop:
        record, spanned = _record(lines, start, len(names), separator)
        problem = None if record is not None else "has a quote that is not closed or not escaped"
        if record is not None and any(record[len(names) :]):
            problem = f"has {len(record)} fields, the header names {len(names)}"
        problems.append(problem)
        for name, place in places.items():
            values[name].append(record[place] if record is not None and place < len(record) else None)
        start += spanned
    table = pl.DataFrame(values, schema=dict.fromkeys(columns, pl.String))
    return table, pl.Series(problems, dtype=pl.String), start


def _record(lines: Sequence[str], start: int, width: int, separator: str) -> tuple[list[str] | None, int]:
    """Return the fields of the record at a line, None if malformed, and its number of lines.

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
