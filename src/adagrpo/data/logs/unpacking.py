"""Read text and Parquet files with bounded expansion, so that a small file cannot fill the memory.

gzip packs up to 1,032 bytes into one, Parquet more; logs compress 3 to 40 times. Text is UTF-8, or UTF-16 with a byte
order mark.
"""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from adagrpo.errors import UserError

MAX_EXPANSION = 100  # `data.max_expansion` if not given
ALWAYS = 2**25  # bytes that may come out of any file
LONGEST_LINE = 2**21  # bytes
LARGEST_FOOTER = 2**23  # bytes of Parquet metadata
BOM = codecs.BOM_UTF8
UTF_8, UTF_8_MARKED, UTF_16 = "UTF-8", "UTF-8 with a byte order mark", "UTF-16"
NOT_UTF_8 = "not UTF-8"
SAVE_AS_UTF_8 = "save it as UTF-8 (iconv -f latin1 -t utf-8)"
PROBED = 2**20  # bytes that are checked for their encoding


def encoding_of(path: Path) -> str:
    """Detect the encoding of a text file; only the first `PROBED` bytes are checked to be UTF-8.

    Raises:
        UserError: it is UTF-32.
    """
    with path.open("rb") as raw:
        file = _unpacked(path, raw)
        encoding = _encoding(path, file)
        if encoding == UTF_16:
            return encoding
        try:
            codecs.getincrementaldecoder("utf-8")().decode(file.read(PROBED))
        except UnicodeDecodeError:
            return NOT_UTF_8
        return encoding


def _unpacked(path: Path, raw: io.BufferedReader) -> io.BufferedReader | gzip.GzipFile:
    return gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw


def _encoding(path: Path, file: io.BufferedReader | gzip.GzipFile) -> str:
    """Detect the encoding without consuming bytes."""
    head = file.peek(4)[:4]
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        raise UserError(f"{path}: is encoded in UTF-32; write it as UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UTF_16
    return UTF_8_MARKED if head.startswith(BOM) else UTF_8


class _Recoded:
    """A UTF-16 file read as UTF-8; invalid characters become U+FFFD."""

    def __init__(self, file: Any) -> None:
        self._text = io.TextIOWrapper(file, "utf-16", "replace", newline="\n")

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode()

    def readline(self, limit: int) -> bytes:
        return self._text.readline(limit).encode()


def read_blocks(path: Path, size: int, max_expansion: float = MAX_EXPANSION) -> Iterator[tuple[bytes, bool]]:
    """Read a file as UTF-8 text, decompressing `.gz`, in blocks that end at the first line end after `size` bytes.

    Yields:
        A block, and whether it is the last; at least one.

    Raises:
        UserError: a line is too long, or `ALWAYS` bytes expand too much.
    """
    with path.open("rb") as raw:
        plain = _unpacked(path, raw)
        file = _Recoded(plain) if _encoding(path, plain) == UTF_16 else plain
        lines = packed = unpacked = 0
        block = file.read(size).removeprefix(BOM)
        while True:
            block += file.readline(LONGEST_LINE + 1)
            start = _too_long(block)
            if start is not None:
                number = lines + block.count(b"\n", 0, start) + 1
                raise UserError(f"{path}, line {number}: is longer than {_mb(LONGEST_LINE)}; a row of data is one line")
            lines += block.count(b"\n")
            unpacked += len(block)
            if unpacked >= ALWAYS and plain is not raw:
                if unpacked > max_expansion * (raw.tell() - packed):
                    raise explodes(path, max_expansion)
                packed, unpacked = raw.tell(), 0
            following = file.read(size)
            yield block, not following
            if not following:
                return
            block = following


def _too_long(block: bytes) -> int | None:
    start = 0
    while len(block) - start > LONGEST_LINE:
        end = block.rfind(b"\n", start, start + LONGEST_LINE + 1)
        if end < 0:
            return start
        start = end + 1
    return None


def explodes(path: Path, max_expansion: float) -> UserError:
    """Create the error for excessive expansion."""
    return UserError(
        f"{path}: unpacks to more than {max_expansion:g} times its size and more than {_mb(ALWAYS)}; if it is to be "
        "read anyway, raise data.max_expansion"
    )


def check_parquet(path: Path, columns: Sequence[str], max_expansion: float = MAX_EXPANSION) -> None:
    """Check how much some columns of a Parquet file would unpack to, at least eight bytes per value.

    Raises:
        UserError: it is too much, or the metadata is damaged or too large.
    """
    unpacked = sum(max(8 * values, content) for name, values, content in _column_chunks(path) if name in columns)
    if unpacked > expansion_limit(path, max_expansion):
        raise explodes(path, max_expansion)


def expansion_limit(path: Path, max_expansion: float) -> float:
    """Return the limit on a file's unpacked bytes."""
    return max(ALWAYS, max_expansion * path.stat().st_size)


def text_bytes(table: pl.DataFrame) -> int:
    """Count the bytes of all text of a table, including repeats."""
    total = 0
    for column in table:
        while isinstance(column.dtype, pl.List | pl.Array):
            column = column.explode()
        if column.dtype in (pl.String, pl.Categorical, pl.Enum):
            total += int(column.cast(pl.String).str.len_bytes().cast(pl.Int64).sum())
    return total


def _column_chunks(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield column, number of values and uncompressed bytes of each column chunk.

    https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        end = file.read(8)
        length = int.from_bytes(end[:4], "little")
        if len(end) < 8 or end[4:] != b"PAR1" or length > size - 8:
            return  # not Parquet, which its reader says better
        if length > LARGEST_FOOTER:
            raise UserError(f"{path}: has {_mb(length)} of metadata; write it with larger row groups")
        file.seek(size - 8 - length)
        footer = _CompactThrift(file.read(length))
    try:
        for group in footer.struct()[4]:  # FileMetaData.row_groups; RowGroup: 1 columns, 3 num_rows
            for column in group[1]:
                metadata = column[3]  # ColumnMetaData: 3 path_in_schema, 5 num_values, 6 total_uncompressed_size
                yield metadata[3][0].decode("utf-8"), max(0, metadata[5], group[3]), max(0, metadata[6])
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as Parquet: its metadata is damaged") from error


class _CompactThrift:
    """The part of Thrift's compact protocol that Parquet uses; structures are fields by number.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def struct(self) -> dict[int, Any]:
        values: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self._integer()
            values[field] = kind == 1 if kind in (1, 2) else self._value(kind)
        return values

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):  # of a list: a byte each
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind in (7, 8):
            count = 8 if kind == 7 else self._varint()
            self.at += count
            return self.content[self.at - count : self.at]
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            return [self._value(head & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"kind {kind} of field")

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("too long a number")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


def _mb(count: int) -> str:
    return f"{count / 2**20:.0f} MB"
