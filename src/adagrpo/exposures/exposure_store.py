"""Exposure log on local disk: SQLite for new rows, Parquet parts for old ones.

Rows stay in SQLite for a while after they are in a part, to recognise retries.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TypeVar

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_database import (
    OPEN,
    check_parts,
    connect,
    insert_exposures,
    insert_feedback,
    transaction,
    waiting_rows,
)
from adagrpo.exposures.exposure_log import Exposure, Feedback, Outcome, SinkFailed, encode
from adagrpo.exposures.exposure_parts import KIND, rotate
from adagrpo.storage.marks import claim

REST_SECONDS = 0.005  # pause of the rotation thread after every few rows
T = TypeVar("T")
LOGGER = logging.getLogger(__name__)


class LocalExposureLog:
    """An `ExposureSink` in a folder of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        rotate_rows: int = 50_000,
        rotate_seconds: float = 3600.0,
        remembered: int = 200_000,
    ) -> None:
        """Open or create the log.

        Args:
            directory: new, empty, or of an exposure log.
            rotate_rows: rows of this process after which a part is made.
            rotate_seconds: time after which one is made.
            remembered: rows of each kind kept in SQLite once in a part.

        Raises:
            UserError: the folder holds something else, is damaged, or not writable.
        """
        self.directory = directory
        self._rotate_rows, self._rotate_seconds, self._remembered = rotate_rows, rotate_seconds, remembered
        try:
            claim(directory, KIND, "--exposures")
            self._connection = connect(directory)
            check_parts(self._connection, directory)
            self._written = waiting_rows(self._connection)  # since the last part
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{directory}: cannot be written as an exposure log ({error})") from error
        self._due, self._ended, self._writing = Event(), False, Lock()
        self._rotation = Thread(target=self._rotate_when_due, name="exposure-parts", daemon=True)
        self._rotation.start()

    def write(self, rows: Sequence[Exposure], together: Sequence[int] | None = None) -> list[Exposure]:
        """See `ExposureSink.write`."""
        texts, bodies = [encode(row) for row in rows], together or [1] * len(rows)
        return self._committed(lambda: insert_exposures(self._connection, rows, texts, bodies), len(rows))

    def feedback(self, rows: Sequence[Feedback]) -> list[Outcome]:
        """See `ExposureSink.feedback`."""
        return self._committed(lambda: insert_feedback(self._connection, rows), len(rows))

    def rotate(self) -> list[int]:
        """Put all rows into parts now."""
        self._written = 0
        return rotate(self.directory, remembered=self._remembered, rest_seconds=REST_SECONDS)

    def close(self) -> None:
        """See `ExposureSink.close`. Rows in no part stay in SQLite."""
        self._ended = True
        self._due.set()
        self._rotation.join()
        self._connection.close()

    def _committed(self, work: Callable[[], list[T]], rows: int) -> list[T]:
        try:
            with self._writing, transaction(self._connection):
                result = work()
        except (sqlite3.Error, OSError) as error:
            raise SinkFailed(f"{self.directory / OPEN}: {error}") from error
        self._written += rows  # not atomic: a part may get a few rows more
        if self._written >= self._rotate_rows:
            self._due.set()
        return result

    def _rotate_when_due(self) -> None:
        while not self._ended:
            self._due.wait(self._rotate_seconds)
            self._due.clear()
            if self._ended:
                return
            try:
                self.rotate()
            except (OSError, sqlite3.Error, UserError) as error:
                LOGGER.warning("exposure log: no part made (%s); its rows stay in %s", error, self.directory / OPEN)
