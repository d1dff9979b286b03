"""Long sequences that stay on disk: their values are mapped into memory, a page when it is read.

    train.parquet -> a file without a name, 4 bytes a value -> pages, given back after each batch

A step of training reads some hundred histories of a log, so what it holds need not grow with the log. The file is
written from the Parquet some rows at a time, and the system removes it with the process. Values, and therefore every
batch, are those that are read into memory.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.types import Ragged

__all__ = ["MappedRagged", "mapped_column"]

_ROWS = 2**22  # of a table that are copied at a time


@dataclass(frozen=True)
class MappedRagged(Ragged):
    """Rows whose values are pages of a file."""

    pages: mmap.mmap

    def release(self) -> None:
        """Forget the pages that were read; the next reader has them from the file again."""
        if hasattr(self.pages, "madvise"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)


def mapped_column(path: Path, name: str, rows: int) -> tuple[NDArray[np.int32], mmap.mmap] | None:
    """The integers of a column of a Parquet file, on disk beside it; None where there is no room to write them.

    Args:
        path: of the file.
        name: of the column, without nulls.
        rows: of the file, at least 1.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            for first in range(0, rows, _ROWS):
                part = pl.scan_parquet(path).select(name).slice(first, _ROWS).collect()[name]
                file.write(part.to_numpy().astype(np.int32, copy=False).data)
            file.flush()
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:  # a read-only folder, a full disk
        return None
    return np.frombuffer(pages, np.int32), pages
