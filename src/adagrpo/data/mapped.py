"""Training sequences on disk, so that memory does not grow with the log.

Batches use `pread`: with large pages, a mapped history would cost 2 MB.
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
    """Rows with values in a file."""

    pages: mmap.mmap
    file: IO[bytes]

    def parts(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        """See `Ragged.parts`."""
        if not hasattr(os, "pread"):  # on Windows
            return super().parts(starts, lengths)
        descriptor, size = self.file.fileno(), self.values.itemsize
        wanted = zip(starts.tolist(), lengths.tolist(), strict=True)
        return np.frombuffer(b"".join(os.pread(descriptor, size * n, size * start) for start, n in wanted), np.int32)

    def release(self) -> None:
        """Drop the mapped pages from memory."""
        if hasattr(self.pages, "madvise"):  # not on Windows
            self.pages.madvise(mmap.MADV_DONTNEED)


def mapped_column(path: Path, name: str, rows: int) -> tuple[NDArray[np.int32], mmap.mmap, IO[bytes]] | None:
    """Copy an integer column without nulls to a temporary file beside it; None if that fails.

    Returns:
        The values, their mapping, and the file, which goes with its last reference.
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
