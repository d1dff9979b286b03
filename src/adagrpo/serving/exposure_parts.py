"""Parts of the exposure log: Parquet, each row in exactly one of them, whatever is killed.

    DIR/parts/000001/    exposures.parquet    one row an answer, lists for what is one value an item
                         feedback.parquet     one row a request, item and kind
                         manifest.json        sha256 and size of both

One process at a time makes a part:

    1. the database says which numbers the part will hold     committed before anything is written
    2. the part is written beside its place and renamed       the same numbers give the same part again
    3. the database says that it is published                 rows that nothing asks for any more are deleted

A kill at any moment leaves a part that was begun, and whoever comes next goes on from there.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import polars as pl

from adagrpo.errors import UserError
from adagrpo.serving.exposure_database import (
    OPEN,
    Span,
    begin_part,
    connect,
    exposures_of,
    feedback_of,
    finish_part,
    forget,
    unpublished,
)
from adagrpo.serving.exposure_log import Exposure, Feedback
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, remove_artifact, seal, verify
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.locks import FolderBusy, lock_folder
from adagrpo.storage.marks import Kind
from adagrpo.storage.removal import remove
from adagrpo.storage.writing import make_folder, naming, temporary

__all__ = ["EXPOSURE_SCHEMA", "FEEDBACK_SCHEMA", "KIND", "MEND", "PARTS", "parts_of", "read_parts", "rotate"]

PARTS = "parts"
AT_ONCE = 64  # rows that are read before a rest
LOOK_SECONDS = 0.05  # after which a caller who waits for another process looks again
KIND: Kind = "exposure log"
PART_KIND = "part of an exposure log"
MEND = "the rows of a part are nowhere else: put it back from a copy, or move it away to go on without them"
LOGGER = logging.getLogger(__name__)
_EXPOSURE: dict[str, pl.DataType | type[pl.DataType]] = {  # in the order of `Exposure`
    "request_id": pl.String,
    "time": pl.Float64,
    "slate": pl.List(pl.String),
    "arm": pl.String,
    "model_version": pl.String,
    "catalog_version": pl.String,
    "user_hash": pl.String,
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
}
EXPOSURE_SCHEMA = pl.Schema(_EXPOSURE)
FEEDBACK_SCHEMA = pl.Schema(
    {"request_id": pl.String, "item": pl.String, "kind": pl.String, "time": pl.Float64, "value": pl.Float64}
)


def rotate(
    directory: Path,
    *,
    remembered: int = 200_000,
    most_bytes: int | None = None,
    rest_seconds: float = 0.0,
    patience: float | None = None,
) -> list[int]:
    """Finish a part that was begun, then make one of all rows that are in none.

    Args:
        directory: of an exposure log; services may be writing to it meanwhile.
        remembered: rows that stay known to the database after they are in a part.
        most_bytes: of all parts; beyond it the oldest are removed. None keeps all.
        rest_seconds: pause after some rows each, for a process that answers meanwhile: each small step of the others
            would have to wait for the interpreter.
        patience: seconds that are waited for another process which is at it, for a caller who is to read all rows; None
            leaves them to that one.

    Returns:
        The numbers of the parts that were published; without patience none where another process is at it.

    Raises:
        UserError: a part is damaged, the folder cannot be written, or another process is at it for too long.
        sqlite3.Error: the database is damaged or full.
    """
    until = time.monotonic() + (patience or 0.0)
    while True:
        try:
            with lock_folder(directory, KIND), closing(connect(directory)) as connection:
                return _make_parts(directory, connection, remembered, most_bytes, rest_seconds)
        except FolderBusy:
            if patience is None:
                return []
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_SECONDS)


def _make_parts(
    directory: Path, connection: sqlite3.Connection, remembered: int, most_bytes: int | None, rest_seconds: float
) -> list[int]:
    """What `rotate` does once no other process is at it."""
    made: list[int] = []
    newest = max((int(path.name) for path in parts_of(directory)), default=0)
    for find in (unpublished, lambda connection: begin_part(connection, newest)):
        span = find(connection)
        if span is not None:
            _publish(directory, connection, span, rest_seconds)
            finish_part(connection, span.part)
            made.append(span.part)
    forget(connection, remembered)
    if most_bytes is not None:
        _remove_oldest(directory, most_bytes)
    return made


def parts_of(directory: Path, through: int | None = None) -> list[Path]:
    """The published parts of a log, oldest first; `through` is the number of the last one wanted."""
    folder = directory / PARTS
    paths = sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    return [path for path in paths if through is None or int(path.name) <= through]


def read_parts(parts: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Exposures and feedback of some parts, in the order in which they were written.

    Raises:
        UserError: a part is not as it was written.
    """
    for part in parts:
        verify(part, MEND)
    exposures = [pl.read_parquet(part / "exposures.parquet") for part in parts]
    feedback = [pl.read_parquet(part / "feedback.parquet") for part in parts]
    return pl.concat([EXPOSURE_SCHEMA.to_frame(), *exposures], how="diagonal"), pl.concat(
        [FEEDBACK_SCHEMA.to_frame(), *feedback]
    )


def _publish(directory: Path, connection: sqlite3.Connection, span: Span, rest_seconds: float) -> None:
    """Write a part, unless it was written before a kill."""
    target = directory / PARTS / f"{span.part:06d}"
    fingerprint = hash_json([span.part, *span.exposures, *span.feedback])
    there = manifest(target, MEND)
    if there is not None:
        verify(target, MEND)
        if there["fingerprint"] != fingerprint:
            raise UserError(f"{target}: holds other rows than {directory / OPEN} gives it; move one of them away")
        return
    check_replaceable(target, PART_KIND)
    make_folder(target.parent)
    work = temporary(target)
    remove(work, lambda name: True)  # of this process, when a disk was full
    work.mkdir()
    tables = [EXPOSURE_SCHEMA.to_frame()]
    for rows in exposures_of(connection, span, AT_ONCE):
        tables.append(_exposure_table(rows))
        time.sleep(rest_seconds)
    exposures, feedback = pl.concat(tables, rechunk=True), _feedback_table(feedback_of(connection, span))
    for name, table in (("exposures", exposures), ("feedback", feedback)):
        with naming(work / f"{name}.parquet"):
            table.write_parquet(work / f"{name}.parquet")
    seal(work, kind=PART_KIND, fingerprint=fingerprint)
    publish(work, target)


def _exposure_table(rows: Sequence[Exposure]) -> pl.DataFrame:
    columns = {name: [getattr(row, name) for row in rows] for name in EXPOSURE_SCHEMA}
    columns["slate"] = [[str(item) for item in row.slate] for row in rows]
    columns["positions"] = [row.positions or range(len(row.slate)) for row in rows]
    for name in ("positions", "log_propensities", "log_inclusions", "teams"):
        columns[name] = [None if values is None else list(values) for values in columns[name]]
    return pl.DataFrame(columns, schema=EXPOSURE_SCHEMA)


def _feedback_table(rows: Sequence[Feedback]) -> pl.DataFrame:
    return pl.DataFrame(
        {name: [getattr(row, name) for row in rows] for name in FEEDBACK_SCHEMA}, schema=FEEDBACK_SCHEMA
    )


def _remove_oldest(directory: Path, most_bytes: int) -> None:
    """Remove the oldest parts until the others are small enough; the newest one stays whatever its size."""
    parts = parts_of(directory)
    sizes = [sum(file.stat().st_size for file in part.iterdir()) for part in parts]
    for place, part in enumerate(parts[:-1]):
        if sum(sizes[place:]) <= most_bytes:
            return
        LOGGER.warning("exposure log: %s is removed, all parts together are above %d bytes", part, most_bytes)
        remove_artifact(part)
