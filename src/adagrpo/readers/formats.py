"""Formats of input files: CSV, Parquet and JSONL, by suffix; the CSV separator, by the header.

Text is UTF-8, or UTF-16 with a byte order mark. Its expansion is bounded.
"""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.errors import UserError
from adagrpo.storage.marks import is_marked

MAX_EXPANSION = 100  # `data.max_expansion` if not given
ALWAYS = 2**25  # bytes that may come out of any file
LONGEST_LINE = 2**21  # bytes
UTF_8, UTF_8_MARKED, UTF_16 = "UTF-8", "UTF-8 with a byte order mark", "UTF-16"
NOT_UTF_8 = "not UTF-8"
SAVE_AS_UTF_8 = "save it as UTF-8 (iconv -f latin1 -t utf-8)"
PROBED = 2**20  # bytes that are checked for their encoding


def encoding_of(path: Path) -> str:
    """Detect a text file's encoding by its first `PROBED` bytes; UserError if it is UTF-32."""
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
        head = file.read(PROBED)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UserError(f"{path}: is encoded in UTF-32; write it as UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UTF_16
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return NOT_UTF_8
    return UTF_8_MARKED if head.startswith(codecs.BOM_UTF8) else UTF_8


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def read_blocks(path: Path, size: int, max_expansion: float = MAX_EXPANSION) -> Iterator[tuple[bytes, bool]]:
    """Yield a file, or `.gz`, as UTF-8 in blocks that end at the first line end after `size` bytes, and which is last.

    UserError for lines longer than `LONGEST_LINE` bytes, or too much expansion.
    """
    recoded = encoding_of(path) == UTF_16
    with path.open("rb") as raw:
        plain = gzip.GzipFile(fileobj=raw) if _is_gzip(path) else raw
        file: Any = io.TextIOWrapper(plain, "utf-16", "replace", newline="\n") if recoded else plain
        lines = packed = unpacked = 0
        following = file.read(size)
        while True:
            end = file.readline(LONGEST_LINE + 1)
            block = (following + end).encode() if recoded else following + end
            block = block if lines else block.removeprefix(codecs.BOM_UTF8)
            lines += block.count(b"\n")
            if len(end) > LONGEST_LINE:
                line = lines + (not block.endswith(b"\n"))
                raise UserError(
                    f"{path}, line {line}: is longer than {LONGEST_LINE >> 20} MB; a row of data is one line"
                )
            unpacked += len(block)
            if unpacked >= ALWAYS and plain is not raw:
                if unpacked > max_expansion * (raw.tell() - packed):
                    raise explodes(path, max_expansion)
                packed, unpacked = raw.tell(), 0
            following = file.read(size)
            yield block, not following
            if not following:
                return


def explodes(path: Path, max_expansion: float) -> UserError:
    """Create the error for excessive expansion."""
    return UserError(
        f"{path}: unpacks to more than {max_expansion:g} times its size and more than {ALWAYS >> 20} MB; if it is to "
        "be read anyway, raise data.max_expansion"
    )


def expansion_limit(path: Path, max_expansion: float) -> float:
    """Return the limit on a file's unpacked bytes."""
    return max(ALWAYS, max_expansion * path.stat().st_size)


TEXTS = {".csv": "CSV", ".tsv": "CSV", ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSONL"}
SUFFIXES = TEXTS | {f"{suffix}.gz": kind for suffix, kind in TEXTS.items()} | {".parquet": "Parquet"}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
UNNAMED = "the first line holds numbers; if they are values, write a line of names above them"
HEADER = 2**16  # characters of a header that say what separates its names
DEEPEST = 5  # fields within fields that are listed
SCHEMA_BYTES = 2**22  # of a JSONL or CSV file, to say which fields it has
SHOWN_NAMES, SHOWN = 20, 80  # names in a message, characters of each


def kind_of(path: Path) -> str:
    """Return `CSV`, `Parquet` or `JSONL`, by the suffix; UserError for a missing file or another kind."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    kind = next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)
    if path.is_dir() or kind is None:
        recipe = path.suffix.lower() in (".yaml", ".yml")
        file = "a recipe, which `adagrpo run` reads" if recipe else "not a file of a known kind"
        what = "a folder" if path.is_dir() else file
        raise UserError(f"{path}: {what}; give a file that ends in {', '.join(SUFFIXES)}")
    return kind


def files_of(paths: Iterable[Path]) -> list[Path]:
    """Replace folders by the files of a known kind in them, at any depth and sorted.

    Links to folders are followed. Names that begin with `.` or `_`, and folders that this program wrote, are left out;
    one of these given as a path stays as it is. UserError for a folder without such a file, or an unreadable one in it.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be read ({error.strerror}), and its rows would be missing"
        ) from error

    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or is_marked(path):
            found.append(path)
            continue
        parts, seen = list[Path](), set[str]()
        for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
            real = os.path.realpath(folder)  # links may lead round in a circle
            if real in seen or is_marked(Path(folder)):
                folders.clear()
                continue
            seen.add(real)
            if "truth" in folders and "manifest.json" in names:  # of `adagrpo simulate`, whose truth no model reads
                folders.remove("truth")
                names.remove("manifest.json")
            folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
            parts += [
                Path(folder, name)
                for name in names
                if name.lower().endswith((*SUFFIXES,)) and not name.startswith((".", "_"))
            ]
        if not parts:
            raise UserError(f"{path}: a folder without a file that ends in {', '.join(SUFFIXES)}")
        found += sorted(parts)
    return found


def names_file(word: str) -> bool:
    """Return whether a word is a file's path."""
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def columns_of(path: Path) -> list[str]:
    """List the columns, or fields in the first `SCHEMA_BYTES` of JSONL; nested ones as `user.id`, after `user`."""
    kind = kind_of(path)
    with reading(path, kind):
        if kind == "Parquet":
            return list(nested_names(pl.scan_parquet(path, glob=False).collect_schema()))
        if kind == "CSV":
            return csv_header(path)[0]
        block, _ = next(read_blocks(path, SCHEMA_BYTES, math.inf))
    if not block:
        raise UserError(f"{path}: the file is empty")
    lines = block.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    fields: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # one bad line; it becomes a reject
        fields |= dict.fromkeys(nested_names(record)) if isinstance(record, dict) else {}
    if not fields:
        raise UserError(f"{path}: no JSON object among the first {len(lines)} lines; each line is one row of the log")
    return list(fields)


def nested_names(fields: Mapping[str, Any], above: str = "", depth: int = 1) -> Iterator[str]:
    """Yield names of a JSON object's or schema's fields, nested ones too."""
    for name, value in fields.items():
        if above and "." in name:
            continue
        yield above + name
        within = value.to_schema() if isinstance(value, pl.Struct) else value
        if isinstance(within, Mapping) and depth < DEEPEST and "." not in name:
            yield from nested_names(within, f"{above}{name}.", depth + 1)


def path_of(name: str) -> list[str]:
    """Split a column name into its field path.

    >>> path_of("user.id"), path_of("user"), path_of("..")
    (['user', 'id'], ['user'], ['..'])
    """
    parts = name.split(".")
    return parts if all(parts) else [name]


def one_line(text: str) -> str:
    """Shorten text to one line of a message.

    >>> one_line("two" + chr(10) + "lines")
    'two lines'
    """
    return " ".join(text[:SHOWN].split()) + ("..." if len(text) > SHOWN else "")


def listed(names: Sequence[str]) -> str:
    """Join names for a message, abbreviating long lists.

    >>> listed([str(n) for n in range(10_000)])[-20:]
    '18, 19 and 9980 more'
    """
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(one_line, names[:SHOWN_NAMES])) + more


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Convert a reader's errors to a one-line `UserError`."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, EOFError, zlib.error) as error:
        if path.stat().st_size == 0 or isinstance(error, pl.exceptions.NoDataError):
            raise UserError(f"{path}: the file is empty") from error
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: cannot be read as {kind}: {first}") from error


def require(path: Path, columns: Sequence[str], available: Sequence[str], option: str | None = None) -> None:
    """Raise a UserError for missing columns that names `option`, their setting, and the nearest name."""
    for name in columns:
        if name not in available:
            near = difflib.get_close_matches(name, [other for other in available if len(other) <= SHOWN], n=1)
            hint = f"did you mean '{one_line(near[0])}'? " if near else ""
            which = f"{option} says which it is; " if option else ""
            raise UserError(f"{path}: no column '{one_line(name)}'; {hint}{which}the columns are {listed(available)}")


def csv_header(path: Path) -> tuple[list[str], str]:
    """Read a CSV file's column names, repeats numbered, and separator."""
    block, _ = next(read_blocks(path, SCHEMA_BYTES, math.inf))
    outside_quotes = re.sub(r'"[^"]*"', "", block[:HEADER].decode("utf-8", errors="replace"))
    header = outside_quotes.lstrip("\r\n").partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    table = pl.scan_csv(
        block, separator=separator, infer_schema=False, encoding="utf8-lossy", truncate_ragged_lines=True
    )
    return table.collect_schema().names(), separator


def file_format(path: Path) -> dict[str, Any]:
    """Describe a file: kind, encoding, compression and CSV separator."""
    kind = kind_of(path)
    found: dict[str, Any] = {"file": path.name, "format": kind}
    if kind == "CSV":
        found["separator"] = csv_header(path)[1]
    if kind != "Parquet":
        found |= {"encoding": encoding_of(path), "packed": path.name.lower().endswith(".gz")}
    return found
