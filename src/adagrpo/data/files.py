"""The files that a user gives: CSV, Parquet and JSONL, by suffix.

`read_table` reads item tables, as the file types them; logs are read by `adagrpo.data.pieces`. What is wrong with a
whole file is a `UserError` of one line.
"""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from adagrpo.errors import UserError

__all__ = ["columns_of", "header_of", "kind_of", "one_line", "read_table", "reading", "require"]

SUFFIXES = {".csv": "CSV", ".csv.gz": "CSV", ".parquet": "Parquet", ".jsonl": "JSONL", ".ndjson": "JSONL"}
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
    with reading(path, kind):
        if kind == "Parquet":
            return pl.scan_parquet(path, glob=False).collect_schema().names()
        if kind == "CSV":
            return header_of(path)
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
    with reading(path, kind):
        if kind == "Parquet":
            table = pl.scan_parquet(path, glob=False)
        elif kind == "CSV":
            # All of it: a reader that skips columns does not see that a record has too many.
            table = pl.read_csv(path, infer_schema=False, encoding="utf8-lossy", glob=False).lazy()
        else:
            table = pl.scan_ndjson(path, infer_schema_length=None)
        available = table.collect_schema().names()
    require(path, columns, available)
    with reading(path, kind):
        return table.select(list(dict.fromkeys(columns))).collect()


def one_line(text: str) -> str:
    """A name or value of the user's, as a message of one line repeats it.

    >>> one_line("two" + chr(10) + "lines")
    'two lines'
    """
    return " ".join(text.split())


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what a reader finds wrong with a whole file into one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        if path.stat().st_size == 0 or isinstance(error, pl.exceptions.NoDataError):
            raise UserError(f"{path}: the file is empty") from error
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: cannot be read as {kind}: {first}") from error


def require(path: Path, wanted: Sequence[str], available: Sequence[str]) -> None:
    """Check that columns are there.

    Raises:
        UserError: one is not; the nearest name is said.
    """
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean '{one_line(near[0])}'? " if near else ""
            raise UserError(f"{path}: no column '{name}'; {hint}the columns are {', '.join(map(one_line, available))}")


def header_of(path: Path) -> list[str]:
    """Names of the columns of a CSV file."""
    table = pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True, glob=False)
    return table.collect_schema().names()


def _lines(path: Path, limit: int) -> pl.Series:
    """The first lines of a file, without their ends; nothing is a separator or a quote."""
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
