"""Long sequences that stay on disk: a batch reads its own histories, and a caller that needs all values maps them.

    train.parquet -> a file without a name, 4 bytes a value -> the stretches that a batch asks for

A step of training reads some hundred histories of a log, so what it holds need not grow with the log. The file is
written from the Parquet some rows at a time, and the system removes it with the process. Values, and therefore every
batch, are those that are read into memory.

Batches do not go through the mapping: where the system keeps a file in large pages, each history would be 2 MB of it.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.types import Ragged

_ROWS = 2**22  # of a table that are copied at a time


@dataclass(frozen=True)
class MappedRagged(Ragged):
    """Rows whose values are in a file."""

    pages: mmap.mmap
    file: IO[bytes]

    def parts(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """See `Ragged.parts`."""
        if not hasattr(os, "pread"):  # on Windows
            return super().parts(starts, lengths)
        place, size = self.file.fileno(), self.values.itemsize
        wanted = zip(starts.tolist(), lengths.tolist(), strict=True)
        return np.frombuffer(b"".join(os.pread(place, size * n, size * start) for start, n in wanted), np.int32)

    def release(self) -> None:
        """Forget the pages that were read; the next reader has them from the file again."""
        if hasattr(self.pages, "madvise"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)


def mapped_column(path: Path, name: str, rows: int) -> tuple[NDArray[np.int32], mmap.mmap, IO[bytes]] | None:
    """The integers of a column of a Parquet file, on disk beside it; None where there is no room to write them.

    Args:
        name: of the column, without nulls.
        rows: of the file, at least 1.

    Returns:
        The values, what maps them, and their file, which is gone once no reference is left.
    """
    try:
        file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115  # the caller closes it
        for first in range(0, rows, _ROWS):
            part = pl.scan_parquet(path).select(name).slice(first, _ROWS).collect()[name]
            file.write(part.to_numpy().astype(np.int32, copy=False).data)
        file.flush()
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # a read-only folder, a full disk
        return None
    return np.frombuffer(pages, np.int32), pages, file
