"""Read text files in blocks of whole lines, as UTF-8, with bounded expansion.

gzip packs up to 1,032 bytes into one; logs compress 3 to 40 times. Text is UTF-8, or UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError

MAX_EXPANSION = 100  # `data.max_expansion` if not given
ALWAYS = 2**25  # bytes that may come out of any file
LONGEST_LINE = 2**21  # bytes
UTF_8, UTF_8_MARKED, UTF_16 = "UTF-8", "UTF-8 with a byte order mark", "UTF-16"
NOT_UTF_8 = "not UTF-8"
SAVE_AS_UTF_8 = "save it as UTF-8 (iconv -f latin1 -t utf-8)"
PROBED = 2**20  # bytes that are checked for their encoding


def encoding_of(path: Path) -> str:
    """Detect the encoding of a text file by its first `PROBED` bytes; UserError if it is UTF-32."""
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

    UserError if a line does not end within `LONGEST_LINE` bytes of a block, or `ALWAYS` bytes expand too much.
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
