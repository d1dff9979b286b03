"""The files that a user gives: CSV, Parquet and JSONL, by suffix; the separator of a CSV file, by its header.

Item tables are read by `adagrpo.data.logs.whole_tables`, logs by `adagrpo.data.logs.chunks`. What is wrong with a whole
file is a `UserError` of one line.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.data.logs.unpacking import read_blocks
from adagrpo.errors import UserError

__all__ = [
    "SEPARATORS",
    "UNNAMED",
    "columns_of",
    "header_of",
    "kind_of",
    "listed",
    "names_file",
    "one_line",
    "path_of",
    "reading",
    "require",
    "separator_of",
    "struct_names",
]

TEXTS = {".csv": "CSV", ".tsv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSONL"}
SUFFIXES = TEXTS | {f"{suffix}.gz": kind for suffix, kind in TEXTS.items()} | {".parquet": "Parquet"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
UNNAMED = "the first line holds numbers; if they are values, write a line of names above them"
HEADER = 2**16  # characters of a header that say what separates its names
DEEPEST = 5  # of fields within fields that are listed
SCHEMA_BYTES = 2**22  # of a JSONL or CSV file, to say which fields it has
SHOWN_NAMES, SHOWN = 20, 80  # names in a message, characters of each


def kind_of(path: Path) -> str:
    """`CSV`, `Parquet` or `JSONL`.

    Raises:
        UserError: there is no such file, or it is a folder or of another kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if path.is_dir() or suffix is None:
        recipe = path.suffix.lower() in (".yaml", ".yml")
        file = "a recipe, which `adagrpo run` reads" if recipe else "not a file of a known kind"
        what = "a folder" if path.is_dir() else file
        raise UserError(f"{path}: {what}; give a file that ends in {', '.join(SUFFIXES)}")
    return SUFFIXES[suffix]


def names_file(word: str) -> bool:
    """Whether a word of a command line names a file; one that is too long for a name, or no name at all, does not."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def columns_of(path: Path) -> list[str]:
    """Names of the columns; of a JSONL file, the fields of its first lines, `SCHEMA_BYTES` of them.

    A field within a field follows it, with a dot: `user`, `user.id`. A kind of event may have fields of its own.
    """
    kind = kind_of(path)
    with reading(path, kind):
        if kind == "Parquet":
            return struct_names(dict(pl.scan_parquet(path, glob=False).collect_schema()))
        if kind == "CSV":
            return header_of(path)
        block, _ = next(read_blocks(path, SCHEMA_BYTES, math.inf))
    if not block:
        raise UserError(f"{path}: the file is empty")
    text = block.decode("utf-8", errors="replace").removesuffix("\n")
    lines = text.split("\n")
    fields: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # one bad line; it becomes a reject
        fields |= dict.fromkeys(_record_names(record)) if isinstance(record, dict) else {}
    if not fields:
        raise UserError(f"{path}: no JSON object among the first {len(lines)} lines; each line is one row of the log")
    return list(fields)


def _record_names(record: dict[str, Any], above: str = "", depth: int = 1) -> Iterator[str]:
    """The fields of a JSON object and those within them; a name with a dot is one of the top alone."""
    for name, value in record.items():
        if above and "." in name:
            continue
        yield above + name
        if isinstance(value, dict) and depth < DEEPEST and "." not in name:
            yield from _record_names(value, f"{above}{name}.", depth + 1)


def struct_names(fields: dict[str, Any], above: str = "") -> list[str]:
    """Columns and the fields within them."""
    names = []
    for name, dtype in fields.items():
        if above and "." in name:
            continue
        names.append(above + name)
        if isinstance(dtype, pl.Struct) and "." not in name:
            names += struct_names({field.name: field.dtype for field in dtype.fields}, f"{above}{name}.")
    return names


def path_of(name: str) -> list[str]:
    """Where a column is that is not at the top: the fields that lead to it; of one without a dot, itself.

    >>> path_of("user.id"), path_of("user"), path_of("..")
    (['user', 'id'], ['user'], ['..'])
    """
    parts = name.split(".")
    return parts if all(parts) else [name]


def one_line(text: str) -> str:
    """A name or value of the user's, as a message of one line repeats it.

    >>> one_line("two" + chr(10) + "lines")
    'two lines'
    """
    return " ".join(text[:SHOWN].split()) + ("..." if len(text) > SHOWN else "")


def listed(names: Sequence[str]) -> str:
    """Names of the user's in a message of one line, the first of many.

    >>> listed(["a", "b"])
    'a, b'
    >>> listed([str(n) for n in range(10_000)])[-20:]
    '18, 19 and 9980 more'
    """
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(one_line, names[:SHOWN_NAMES])) + more


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what a reader finds wrong with a whole file into one line."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, EOFError, zlib.error) as error:
        if path.stat().st_size == 0 or isinstance(error, pl.exceptions.NoDataError):
            raise UserError(f"{path}: the file is empty") from error
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: cannot be read as {kind}: {first}") from error


def require(path: Path, columns: Sequence[str], available: Sequence[str], option: str | None = None) -> None:
    """Check that columns are there.

    Args:
        path: of the file.
        columns: their names.
        available: all that the file has.
        option: that says which column it is.

    Raises:
        UserError: one is not; the nearest name is said.
    """
    for name in columns:
        if name not in available:
            near = difflib.get_close_matches(name, [other for other in available if len(other) <= SHOWN], n=1)
            hint = f"did you mean '{one_line(near[0])}'? " if near else ""
            said = f"{option} says which it is; " if option else ""
            raise UserError(f"{path}: no column '{one_line(name)}'; {hint}{said}the columns are {listed(available)}")


def header_of(path: Path) -> list[str]:
    """Names of the columns of a CSV file."""
    block, _ = next(read_blocks(path, SCHEMA_BYTES, math.inf))
    table = pl.scan_csv(
        block, separator=_separator(block), infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True
    )
    return table.collect_schema().names()


def separator_of(path: Path) -> str:
    """What separates the fields of a CSV file: of commas, semicolons, tabs and bars, what its header has most of.

    Quoted names do not count. A header of one name is taken to be separated by commas.
    """
    block, _ = next(read_blocks(path, SCHEMA_BYTES, math.inf))
    return _separator(block)


def _separator(block: bytes) -> str:
    r"""The separator of a text, by its first line.

    >>> _separator(b'user;item;"at, roughly"\n1,2;3,4;5,6')
    ';'
    """
    text = re.sub(r'"[^"]*"', "", block[:HEADER].decode("utf-8", errors="replace"))
    header = text.lstrip("\r\n").partition("\n")[0]
    return max(SEPARATORS, key=header.count)
