"""Exposure log on local disk: SQLite for new rows, Parquet parts for old ones.

Each row is in exactly one part, whatever is killed:

    1. commit the row numbers of the part to the database
    2. write the part to a temporary folder and rename it
    3. mark it as published, and delete rows no longer needed to recognise retries

One process at a time makes parts; the next one resumes after a kill.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TypeVar

import polars as pl

from adagrpo.errors import UserError
from adagrpo.exposures import exposure_database as database
from adagrpo.exposures.exposure_database import OPEN, Refused, Span
from adagrpo.exposures.exposure_log import Exposure, Feedback, Outcome, SinkFailed, encode
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, seal, verify
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.locks import FolderBusy, lock_folder
from adagrpo.storage.marks import Kind, claim
from adagrpo.storage.writing import make_folder, naming, remove, temporary, write_file

PARTS = "parts"
PATIENCE = 60.0  # seconds to wait for a service that makes a part
AT_ONCE = 64  # rows read between pauses
LOOK_SECONDS = 0.05  # polling interval while another process makes a part
KIND: Kind = "exposure log"
PART_KIND = "part of an exposure log"
REMEDY = "the rows of a part are nowhere else: put it back from a copy, or move it away to go on without them"
REST_SECONDS = 0.005  # pause of the rotation thread after every few rows
LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
_EXPOSURE: dict[str, pl.DataType | type[pl.DataType]] = {  # in the order of `Exposure`
    "request_id": pl.String,
    "time": pl.Float64,
    "slate": pl.List(pl.String),
    "arm": pl.String,
    "model_version": pl.String,
    "catalog_version": pl.String,
    "user_hash": pl.String,
    "key_version": pl.String,
    "history_hash": pl.String,
    "experiment": pl.String,
    "salt_version": pl.String,
    "arm_version": pl.String,
    "positions": pl.List(pl.Int32),
    "source": pl.String,
    "temperature": pl.Float64,
    "seed": pl.Int64,
    "log_propensities": pl.List(pl.Float64),
    "log_inclusions": pl.List(pl.Float64),
    "latency_ms": pl.Float64,
    "deal": pl.String,
    "teams": pl.List(pl.String),
    "narrowed": pl.Boolean,
    "degraded": pl.String,
}
EXPOSURE_SCHEMA = pl.Schema(_EXPOSURE)
FEEDBACK_SCHEMA = pl.Schema(
    {"request_id": pl.String, "item": pl.String, "kind": pl.String, "time": pl.Float64, "value": pl.Float64}
)


class LocalExposureLog:
    """An `ExposureSink` in a folder of its own."""

    def __init__(
        self, directory: Path, *, rotate_rows: int = 50_000, rotate_seconds: float = 3600.0, kept_rows: int = 200_000
    ) -> None:
        """Open or create the log; `UserError` for a foreign, damaged, or unwritable folder.

        A part is made after so many rows of this process or seconds; `kept_rows` of each kind then stay in SQLite.
        """
        self.directory = directory
        self._rotate_rows, self._rotate_seconds, self._kept_rows = rotate_rows, rotate_seconds, kept_rows
        try:
            claim(directory, KIND, "--exposures")
            self._connection = database.connect(directory)
            database.check_parts(self._connection, directory)
            self._written = database.waiting_rows(self._connection)  # since the last part
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{directory}: cannot be written as an exposure log ({error})") from error
        self._due, self._ended, self._writing = Event(), False, Lock()
        self._rotation = Thread(target=self._rotate_when_due, name="exposure-parts", daemon=True)
        self._rotation.start()

    def write(self, rows: Sequence[Exposure], together: Sequence[int] | None = None) -> list[Exposure]:
        """See `ExposureSink.write`."""
        texts, bodies = [encode(row) for row in rows], together or [1] * len(rows)
        return self._committed(lambda: database.insert_exposures(self._connection, rows, texts, bodies), len(rows))

    def feedback(self, rows: Sequence[Feedback]) -> list[Outcome]:
        """See `ExposureSink.feedback`."""
        return self._committed(lambda: database.insert_feedback(self._connection, rows), len(rows))

    def rotate(self) -> list[int]:
        """Put all rows into parts now."""
        self._written = 0
        return rotate(self.directory, kept_rows=self._kept_rows, rest_seconds=REST_SECONDS)

    def close(self) -> None:
        """See `ExposureSink.close`. Rows in no part stay in SQLite."""
        self._ended = True
        self._due.set()
        self._rotation.join()
        self._connection.close()

    def _committed(self, work: Callable[[], list[T]], rows: int) -> list[T]:
        try:
            with self._writing, database.transaction(self._connection):
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


def rotate(
    directory: Path, *, kept_rows: int = 200_000, rest_seconds: float = 0.0, patience: float | None = None
) -> list[int]:
    """Finish a begun part, then make one of all other rows; return their numbers.

    Services may be writing. `kept_rows` of each kind stay in the database. It waits `patience` seconds for another
    process; None: it leaves the rows to it. UserError for a damaged part, an unwritable folder, or `patience` exceeded;
    sqlite3.Error for a damaged or full database.
    """
    until = time.monotonic() + (patience or 0.0)
    while True:
        try:
            with lock_folder(directory, KIND), closing(database.connect(directory)) as connection:
                made: list[int] = []
                database.check_parts(connection, directory)
                newest = max((int(path.name) for path in parts_of(directory)), default=0)
                for find in (database.unpublished, partial(database.begin_part, after=newest)):
                    if (span := find(connection)) is not None:
                        _publish(directory, connection, span, rest_seconds)
                        database.finish_part(connection, span.part)
                        made.append(span.part)
                database.forget(connection, kept_rows)
                return made
        except FolderBusy:
            if patience is None:
                return []
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_SECONDS)


def close_part(directory: Path) -> None:
    """Put rows in no part into one."""
    try:
        rotate(directory, patience=PATIENCE)  # a part being made has the wanted rows
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{directory}: what is in no part yet cannot be read ({error})") from error


def parts_of(directory: Path, through: int | None = None) -> list[Path]:
    """Return the published parts, oldest first, up to number `through`."""
    folder = directory / PARTS
    paths = sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    return [path for path in paths if through is None or int(path.name) <= through]


def read_parts(parts: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return exposures and feedback of parts, in order; `UserError` for a damaged or other version's part."""
    for part in parts:
        verify(part, REMEDY)
    exposures = [_read_table(part / "exposures.parquet", EXPOSURE_SCHEMA) for part in parts]
    feedback = [_read_table(part / "feedback.parquet", FEEDBACK_SCHEMA) for part in parts]
    return pl.concat([EXPOSURE_SCHEMA.to_frame(), *exposures]), pl.concat([FEEDBACK_SCHEMA.to_frame(), *feedback])


def refused_rows(parts: Sequence[Path]) -> list[str]:
    """Return file, row and reason of each row that was invalid."""
    files = [part / "refused.jsonl" for part in parts]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def locate_row(parts: Sequence[Path], number: int) -> str:
    """Return file and row, from 1, of a row of `read_parts`."""
    for part in parts:
        file = part / "exposures.parquet"
        rows = int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())
        if number < rows:
            return f"{file}, row {number + 1}"
        number -= rows
    raise IndexError(number)


def _read_table(file: Path, schema: pl.Schema) -> pl.DataFrame:
    table = pl.read_parquet(file)
    if table.schema != schema:
        other = next((name for name in schema if table.schema.get(name) != schema[name]), "another column")
        raise UserError(f"{file}: holds no rows of this version of an exposure log ({other}); {REMEDY}")
    return table


def _publish(directory: Path, connection: sqlite3.Connection, span: Span, rest_seconds: float) -> None:
    target = directory / PARTS / f"{span.part:06d}"
    fingerprint = hash_json([span.part, *span.exposures, *span.feedback])
    existing = manifest(target, REMEDY)
    if existing is not None:
        verify(target, REMEDY)
        if existing["fingerprint"] != fingerprint:
            raise UserError(f"{target}: holds other rows than {directory / OPEN} gives it; move one of them away")
        return
    check_replaceable(target, PART_KIND)
    make_folder(target.parent)
    work = temporary(target)
    remove(work, lambda name: True)  # left by this process when the disk was full
    work.mkdir()
    tables, refused = [EXPOSURE_SCHEMA.to_frame()], list[Refused]()
    for rows, invalid in database.exposures_of(connection, span, AT_ONCE):
        tables.append(_exposure_table(rows))
        refused += invalid
        time.sleep(rest_seconds)
    events, invalid = database.feedback_of(connection, span)
    columns = {name: [getattr(row, name) for row in events] for name in FEEDBACK_SCHEMA}
    feedback = pl.DataFrame(columns, schema=FEEDBACK_SCHEMA)
    for name, table in (("exposures", pl.concat(tables, rechunk=True)), ("feedback", feedback)):
        with naming(work / f"{name}.parquet"):
            table.write_parquet(work / f"{name}.parquet")
    if refused := [*refused, *invalid]:
        lines = [f"{directory / OPEN}, table {table}, row {number}: {why}" for table, number, why in refused]
        LOGGER.warning("exposure log: %d rows are none and left out, such as %s", len(lines), lines[0])
        write_file(work / "refused.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    seal(work, kind=PART_KIND, fingerprint=fingerprint)
    publish(work, target)


def _exposure_table(rows: Sequence[Exposure]) -> pl.DataFrame:
    columns = {name: [getattr(row, name) for row in rows] for name in EXPOSURE_SCHEMA}
    columns["slate"] = [[str(item) for item in row.slate] for row in rows]
    columns["positions"] = [row.positions or range(len(row.slate)) for row in rows]
    for name in ("positions", "log_propensities", "log_inclusions", "teams"):
        columns[name] = [None if values is None else list(values) for values in columns[name]]
    return pl.DataFrame(columns, schema=EXPOSURE_SCHEMA)
