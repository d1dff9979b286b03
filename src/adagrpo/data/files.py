"""The files that a user gives: CSV, Parquet and JSONL, by suffix.

`read_text` reads logs, the values of CSV and JSONL as text: a parser that infers types either stops at the first bad
value or hides it. `read_table` reads item tables, as the file types them. What is wrong with a whole file is a
`UserError` of one line.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import polars as pl

from adagrpo.errors import UserError

__all__ = ["columns_of", "kind_of", "one_line", "read_table", "read_text"]

SUFFIXES = {".csv": "CSV", ".csv.gz": "CSV", ".parquet": "Parquet", ".jsonl": "JSONL", ".ndjson": "JSONL"}
RECORD_LINES = 100  # a quoted field that goes on for longer is taken for an unclosed quote
SCHEMA_LINES = 1000  # of a JSONL file, to say which fields it has


def kind_of(path: Path) -> str:
    """`CSV`, `Parquet` or `JSONL`.

    Raises:
        UserError: there is no such file, or it is a folder or of another kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if path.is_dir() or suffix is None:
        what = "a folder" if path.is_dir() else "not a file of a known kind"
        raise UserError(f"{path}: {what}; give a file that ends in {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def columns_of(path: Path) -> list[str]:
    """Names of the columns; of a JSONL file, the fields of its first lines."""
    kind = kind_of(path)
    with _reading(path, kind):
        if kind == "Parquet":
            return pl.scan_parquet(path, glob=False).collect_schema().names()
        if kind == "CSV":
            return _scan_csv(path).collect_schema().names()
        lines = _lines(path, SCHEMA_LINES)
    fields: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # one bad line; it becomes a reject
        fields |= dict.fromkeys(record) if isinstance(record, dict) else {}
    if not fields:
        raise UserError(f"{path}: no JSON object among the first {len(lines)} lines; each line is one row of the log")
    return list(fields)


def read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of a table, typed as in the file; those of a CSV file are text.

    Raises:
        UserError: the file or a column is missing, or the file or one of its records is malformed.
    """
    kind = kind_of(path)
    with _reading(path, kind):
        if kind == "Parquet":
            table = pl.scan_parquet(path, glob=False)
        elif kind == "CSV":
            # All of it: a reader that skips columns does not see that a record has too many.
            table = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", glob=False).lazy()
        else:
            table = pl.scan_ndjson(path, infer_schema_length=None)
        available = table.collect_schema().names()
    _require(path, columns, available)
    with _reading(path, kind):
        return table.select(list(dict.fromkeys(columns))).collect()


def read_text(path: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, pl.Series | None]:
    """Some columns of a log: of a Parquet file as they are, of others as text.

    Returns:
        The columns, a row for each row of the file; and what is wrong with a row as a whole, null where nothing is.

    Raises:
        UserError: the file or a column is missing, or it cannot be read.
    """
    kind = kind_of(path)
    _require(path, columns, columns_of(path))
    with _reading(path, kind):
        if kind == "Parquet":
            return pl.read_parquet(path, columns=list(columns), glob=False), None
        return _read_csv(path, columns) if kind == "CSV" else _read_jsonl(path, columns)


def one_line(text: str) -> str:
    """A name or value of the user's, as a message of one line repeats it.

    >>> one_line("two" + chr(10) + "lines")
    'two lines'
    """
    return " ".join(text.split())


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what a reader finds wrong with a whole file into one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if path.stat().st_size == 0 or isinstance(error, pl.exceptions.NoDataError):
            raise UserError(f"{path}: the file is empty") from error
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: cannot be read as {kind}: {first}") from error


def _require(path: Path, wanted: Sequence[str], available: Sequence[str]) -> None:
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean '{one_line(near[0])}'? " if near else ""
            raise UserError(f"{path}: no column '{name}'; {hint}the columns are {', '.join(map(one_line, available))}")


def _scan_csv(path: Path) -> pl.LazyFrame:
    return pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True, glob=False)


def _lines(path: Path, limit: int | None = None) -> pl.Series:
    """Every line of a file, without its end; nothing is a separator or a quote."""
    table = pl.scan_csv(
        path,
        has_header=False,
        separator="\x01",
        quote_char=None,
        infer_schema=False,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
        n_rows=limit,
    )
    return table.select(pl.first().fill_null("")).collect().to_series()


def _read_jsonl(path: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
    """Fields of the top level as text, null in a line that is not JSON; and what is wrong with a line."""
    lines = pl.col("line")
    fields = [lines.str.json_path_match(f"$[{json.dumps(name, ensure_ascii=False)}]").alias(name) for name in columns]
    table = pl.DataFrame({"line": _lines(path)}).select(fields)
    nothing = pl.lit(f"not a JSON object with any of the fields {', '.join(columns)}")
    return table, table.select(pl.when(pl.all_horizontal(pl.all().is_null())).then(nothing)).to_series()


def _read_csv(path: Path, columns: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
    """Columns as text, and what is wrong with a record as a whole.

    The fast reader cuts what a record has too much, and two unclosed quotes swallow all between them without a word.
    So lines are counted beside it, and their separators; where a record is not a line, they are read one by one.
    """
    names, lines = _scan_csv(path).collect_schema().names(), _lines(path)
    try:
        table = _scan_csv(path).select(columns).collect()
    except pl.exceptions.ComputeError:
        table = pl.DataFrame()
    if len(table) != len(lines) - 1:
        return _read_records(lines.to_list(), names, columns)
    unquoted = lines[1:].str.replace_all('"[^"]*"', "").str.strip_chars_end(",")
    width = unquoted.str.count_matches(",", literal=True) + 1
    too_wide = pl.concat_str(pl.lit("has "), pl.lit(width), pl.lit(f" fields, the header names {len(names)}"))
    return table, pl.select(pl.when(pl.lit(width) > len(names)).then(too_wide)).to_series()


def _read_records(lines: list[str], names: Sequence[str], columns: Sequence[str]) -> tuple[pl.DataFrame, pl.Series]:
    """What `_read_csv` returns, where a record is not always a line."""
    places = {name: names.index(name) for name in columns}
    values: dict[str, list[str | None]] = {name: [] for name in columns}
    problems: list[str | None] = []
    for record in islice(_records(lines, len(names)), 1, None):  # the first is the header
        problem = None if record is not None else "has a quote that is not closed or not escaped"
        if record is not None and any(record[len(names) :]):
            problem = f"has {len(record)} fields, the header names {len(names)}"
        problems.append(problem)
        for name, place in places.items():
            values[name].append(record[place] if record is not None and place < len(record) else None)
    return pl.DataFrame(values, schema=dict.fromkeys(columns, pl.String)), pl.Series(problems, dtype=pl.String)


def _records(lines: list[str], width: int) -> Iterator[list[str] | None]:
    """Fields of every record; None for a malformed line.

    A record of several lines with a wrong number of fields is taken for a quote that was not closed: its first line is
    malformed, and reading goes on with the second.
    """
    start = 0
    while start < len(lines):
        record: list[str] | None = lines[start].split(",")
        spanned = 1
        if '"' in lines[start]:
            stop = min(start + RECORD_LINES, len(lines))
            reader = csv.reader((f"{lines[index]}\n" for index in range(start, stop)), strict=True)
            try:
                record = next(reader)
                spanned = reader.line_num
            except csv.Error:
                record = None
            if spanned > 1 and record is not None and len(record) != width:
                record, spanned = None, 1
        yield record
        start += spanned
