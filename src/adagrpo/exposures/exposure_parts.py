"""Parts of the exposure log in Parquet; each row is in exactly one part, whatever is killed.

    1. commit the row numbers of the part to the database
    2. write the part to a temporary folder and rename it
    3. mark it as published, and delete rows no longer remembered

One process at a time makes parts; the next one resumes after a kill.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import polars as pl

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_database import (
    OPEN,
    Refused,
    Span,
    begin_part,
    check_parts,
    connect,
    exposures_of,
    feedback_of,
    finish_part,
    forget,
    unpublished,
)
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.storage.artifacts import check_replaceable, manifest, publish, seal, verify
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.locks import FolderBusy, lock_folder
from adagrpo.storage.marks import Kind
from adagrpo.storage.removal import remove
from adagrpo.storage.writing import make_folder, naming, temporary, write_file

PARTS = "parts"
PATIENCE = 60.0  # seconds to wait for a service that makes a part
AT_ONCE = 64  # rows read between pauses
LOOK_SECONDS = 0.05  # polling interval while another process makes a part
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


def rotate(
    directory: Path,
    *,
    remembered: int = 200_000,
    rest_seconds: float = 0.0,
    patience: float | None = None,
) -> list[int]:
    """Finish a part that was begun, then make one of all other rows.

    Args:
        directory: of an exposure log; services may be writing to it.
        remembered: rows kept in the database once in a part.
        rest_seconds: pause after every few rows, for a service's other threads.
        patience: seconds to wait for another process that makes a part; None: leave the rows to it.

    Returns:
        Numbers of the published parts.

    Raises:
        UserError: a damaged part, an unwritable folder, or `patience` exceeded.
        sqlite3.Error: the database is damaged or full.
    """
    until = time.monotonic() + (patience or 0.0)
    while True:
        try:
            with lock_folder(directory, KIND), closing(connect(directory)) as connection:
                return _make_parts(directory, connection, remembered, rest_seconds)
        except FolderBusy:
            if patience is None:
                return []
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_SECONDS)


def close_part(directory: Path) -> None:
    """Put rows that are in no part into one, for a reader."""
    try:
        rotate(directory, patience=PATIENCE)  # a part being made has the wanted rows
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{directory}: what is in no part yet cannot be read ({error})") from error


def _make_parts(directory: Path, connection: sqlite3.Connection, remembered: int, rest_seconds: float) -> list[int]:
    made: list[int] = []
    check_parts(connection, directory)
    newest = max((int(path.name) for path in parts_of(directory)), default=0)
    for find in (unpublished, lambda connection: begin_part(connection, newest)):
        span = find(connection)
        if span is not None:
            _publish(directory, connection, span, rest_seconds)
            finish_part(connection, span.part)
            made.append(span.part)
    forget(connection, remembered)
    return made


def parts_of(directory: Path, through: int | None = None) -> list[Path]:
    """Return the published parts, oldest first, up to number `through`."""
    folder = directory / PARTS
    paths = sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    return [path for path in paths if through is None or int(path.name) <= through]


def read_parts(parts: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return exposures and feedback of parts, in order.

    Raises:
        UserError: a part is damaged, or of another version.
    """
    for part in parts:
        verify(part, MEND)
    exposures = [_read_table(part / "exposures.parquet", EXPOSURE_SCHEMA) for part in parts]
    feedback = [_read_table(part / "feedback.parquet", FEEDBACK_SCHEMA) for part in parts]
    return pl.concat([EXPOSURE_SCHEMA.to_frame(), *exposures]), pl.concat([FEEDBACK_SCHEMA.to_frame(), *feedback])


def refused_rows(parts: Sequence[Path]) -> list[str]:
    """Return file, row and reason of each row that was invalid."""
    files = [part / "refused.jsonl" for part in parts]
    return [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]


def place_of(parts: Sequence[Path], number: int) -> str:
    """Return file and row, counted from 1, of a row that `read_parts` returns."""
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
        raise UserError(f"{file}: holds no rows of this version of an exposure log ({other}); {MEND}")
    return table


def _publish(directory: Path, connection: sqlite3.Connection, span: Span, rest_seconds: float) -> None:
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
    remove(work, lambda name: True)  # left by this process when the disk was full
    work.mkdir()
    tables, refused = [EXPOSURE_SCHEMA.to_frame()], list[Refused]()
    for rows, none in exposures_of(connection, span, AT_ONCE):
        tables.append(_exposure_table(rows))
        refused += none
        time.sleep(rest_seconds)
    events, none = feedback_of(connection, span)
    for name, table in (("exposures", pl.concat(tables, rechunk=True)), ("feedback", _feedback_table(events))):
        with naming(work / f"{name}.parquet"):
            table.write_parquet(work / f"{name}.parquet")
    _say_refused(directory, work, [*refused, *none])
    seal(work, kind=PART_KIND, fingerprint=fingerprint)
    publish(work, target)


def _say_refused(directory: Path, work: Path, refused: Sequence[Refused]) -> None:
    if not refused:
        return
    said = [f"{directory / OPEN}, table {table}, row {number}: {why}" for table, number, why in refused]
    LOGGER.warning("exposure log: %d rows are none and left out, such as %s", len(said), said[0])
    write_file(work / "refused.jsonl", "".join(f"{json.dumps(line)}\n" for line in said))


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
