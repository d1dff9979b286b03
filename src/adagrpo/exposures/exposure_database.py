"""Rows of the exposure log in SQLite, in write-ahead mode and synced at each commit.

A part holds the row numbers after those of the part before; numbers only grow. `seal` is a hash of a row of `parts`.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import (
    EXPOSURE,
    FEEDBACK_FIELDS,
    Exposure,
    Feedback,
    Outcome,
    RowT,
    same_request,
    why_refused,
)
from adagrpo.storage.hashes import hash_json

OPEN = "open.sqlite"
BUSY_SECONDS = 30.0  # that a writer waits for another process
LOOK_SECONDS = 0.0005  # polling interval
SCHEMA = """
CREATE TABLE IF NOT EXISTS exposures (
  number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL UNIQUE, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS feedback (
  number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, item TEXT NOT NULL, kind TEXT NOT NULL,
  time REAL NOT NULL, value REAL NOT NULL, UNIQUE (request_id, item, kind));
CREATE TABLE IF NOT EXISTS parts (
  number INTEGER PRIMARY KEY, last_exposure INTEGER NOT NULL, last_feedback INTEGER NOT NULL,
  published INTEGER NOT NULL DEFAULT 0, seal TEXT NOT NULL DEFAULT '');
"""
KNOWN = "SELECT number, row FROM exposures WHERE request_id IN (SELECT value FROM json_each(?))"
# newest part, and the last rows it holds; 0 if none
LAST = "SELECT coalesce(max(number), 0), coalesce(max(last_exposure), 0), coalesce(max(last_feedback), 0) FROM parts"
LOGGER = logging.getLogger(__name__)


Refused = tuple[str, int, str]  # an invalid row of the database: table, number, reason


class Span(NamedTuple):
    """Rows of a part: numbers above the first and up to the last."""

    part: int
    exposures: tuple[int, int]
    feedback: tuple[int, int]


def connect(directory: Path) -> sqlite3.Connection:
    """Open or create the database, for one thread at a time; `UserError` for a link."""
    path = directory / OPEN
    links = [one for one in sorted(directory.iterdir()) if one.is_symlink()]
    if links:
        raise UserError(f"{links[0]}: is a link; an exposure log is written into files of its own, move it away")
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.text_factory = lambda content: content.decode(errors="surrogateescape")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(SCHEMA)
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block as one durable transaction."""
    until = time.monotonic() + BUSY_SECONDS
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {1000 * BUSY_SECONDS:.0f}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back on a full disk
            connection.execute("ROLLBACK")
        raise


def insert_exposures(
    connection: sqlite3.Connection, rows: Sequence[Exposure], texts: Sequence[str], together: Sequence[int]
) -> list[Exposure]:
    """Insert rows with new request ids, see `ExposureSink.write`; invalid ones on record are replaced."""
    known = _known(connection, [row.request_id for row in rows])
    new, pairs = [], zip(rows, texts, strict=True)
    for count in together:
        body = list(islice(pairs, count))
        if all(same_request(row, known.get(row.request_id, row)) for row, _ in body):
            for row, text in body:
                if row.request_id not in known:
                    known[row.request_id] = row
                    new.append((row.request_id, text))
    connection.executemany("INSERT OR REPLACE INTO exposures (request_id, row) VALUES (?, ?)", new)
    return [known.get(row.request_id, row) for row in rows]


def insert_feedback(connection: sqlite3.Connection, rows: Sequence[Feedback]) -> list[Outcome]:
    """Insert new feedback, also if its exposure is unknown."""
    known = _known(connection, [row.request_id for row in rows])
    shown = {(name, str(item)) for name, row in known.items() for item in row.slate}
    insert = "INSERT OR IGNORE INTO feedback (request_id, item, kind, time, value) VALUES (?, ?, ?, ?, ?)"
    outcomes: list[Outcome] = []
    for row in rows:
        values = (row.request_id, str(row.item), row.kind, row.time, row.value)
        stored, known_item = connection.execute(insert, values).rowcount, values[:2] in shown
        outcomes.append("repeated" if not stored else "stored" if known_item else "unknown")
    return outcomes


def check_parts(connection: sqlite3.Connection, directory: Path) -> None:
    """Check the seals of table `parts`; `UserError` if a row was changed."""
    for number, exposures, feedback, published, seal in connection.execute(
        "SELECT number, last_exposure, last_feedback, published, seal FROM parts ORDER BY number"
    ):
        if seal != _seal(number, exposures, feedback, published):
            raise UserError(
                f"{directory / OPEN}: table parts, row {number} is not as it was written and may leave rows out of"
                " every part; put the file back from a copy, or delete the row: its rows are then in a part once more"
            )


def _seal(number: object, exposures: object, feedback: object, published: object) -> str:
    return hash_json([number, exposures, feedback, published])


def waiting_rows(connection: sqlite3.Connection) -> int:
    """Count rows that are in no published part."""
    _, exposures, feedback = connection.execute(f"{LAST} WHERE published = 1").fetchone()
    counted = 0
    for table, last in (("exposures", exposures), ("feedback", feedback)):
        counted += connection.execute(f"SELECT count(*) FROM {table} WHERE number > ?", [last]).fetchone()[0]
    return counted


def unpublished(connection: sqlite3.Connection) -> Span | None:
    """Return the part that was begun and not published."""
    query = "SELECT number, last_exposure, last_feedback FROM parts WHERE"
    found = connection.execute(f"{query} published = 0 ORDER BY number").fetchone()
    if found is None:
        return None
    part, *lasts = found
    before = connection.execute(f"{query} number < ? ORDER BY number DESC LIMIT 1", [part]).fetchone() or (0, 0, 0)
    return Span(part, (before[1], lasts[0]), (before[2], lasts[1]))


def begin_part(connection: sqlite3.Connection, after: int = 0) -> Span | None:
    """Assign open rows to a part numbered above `after`; None without any."""
    with transaction(connection):
        part, exposures, feedback = connection.execute(LAST).fetchone()
        newest = [
            max(last, connection.execute(f"SELECT coalesce(max(number), 0) FROM {table}").fetchone()[0])
            for table, last in (("exposures", exposures), ("feedback", feedback))
        ]
        if newest == [exposures, feedback]:
            return None
        number = max(part, after) + 1
        connection.execute(
            "INSERT INTO parts VALUES (?, ?, ?, 0, ?)", [number, *newest, _seal(number, newest[0], newest[1], 0)]
        )
    return Span(number, (exposures, newest[0]), (feedback, newest[1]))


def finish_part(connection: sqlite3.Connection, part: int) -> None:
    """Mark a part as published."""
    with transaction(connection):
        last = connection.execute("SELECT last_exposure, last_feedback FROM parts WHERE number = ?", [part]).fetchone()
        seal = _seal(part, last[0], last[1], 1)
        connection.execute("UPDATE parts SET published = 1, seal = ? WHERE number = ?", [seal, part])


def forget(connection: sqlite3.Connection, kept_rows: int) -> None:
    """Delete rows of published parts, except the newest `kept_rows` per table."""
    published = "SELECT coalesce(max(last_exposure), 0), coalesce(max(last_feedback), 0) FROM parts WHERE published = 1"
    lasts = connection.execute(published).fetchone()
    for table, last in zip(("exposures", "feedback"), lasts, strict=True):
        newest = connection.execute(f"SELECT coalesce(max(number), 0) FROM {table}").fetchone()[0]
        with transaction(connection):
            connection.execute(f"DELETE FROM {table} WHERE number <= ?", [min(last, newest - kept_rows)])


def exposures_of(
    connection: sqlite3.Connection, span: Span, at_once: int
) -> Iterator[tuple[list[Exposure], list[Refused]]]:
    """Yield valid and invalid exposures of a part, `at_once` at a time."""
    query = "SELECT number, row FROM exposures WHERE number > ? AND number <= ? ORDER BY number"
    found = connection.execute(query, span.exposures)
    while rows := found.fetchmany(at_once):
        yield _read("exposures", rows, EXPOSURE.validate_json)


def feedback_of(connection: sqlite3.Connection, span: Span) -> tuple[list[Feedback], list[Refused]]:
    """Return valid and invalid feedback of a part."""
    columns = ", ".join(FEEDBACK_FIELDS)
    query = f"SELECT number, {columns} FROM feedback WHERE number > ? AND number <= ? ORDER BY number"
    found = connection.execute(query, span.feedback)
    rows = ((number, dict(zip(FEEDBACK_FIELDS, values, strict=True))) for number, *values in found)
    return _read("feedback", rows, lambda row: Feedback(**row))


def _read(table: str, rows: Iterable[tuple[int, Any]], made: Callable[[Any], RowT]) -> tuple[list[RowT], list[Refused]]:
    read: list[RowT] = []
    refused: list[Refused] = []
    for number, content in rows:
        try:
            read.append(made(content))
        except ValidationError as error:
            refused.append((table, number, why_refused(error)))
        except (ValueError, TypeError) as error:
            refused.append((table, number, str(error)))
    return read, refused


def _known(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Exposure]:
    found = connection.execute(KNOWN, [json.dumps(ids)]).fetchall()
    rows, refused = _read("exposures", found, EXPOSURE.validate_json)
    for table, number, why in refused:
        LOGGER.warning("exposure log: %s, table %s, row %d is no row (%s)", OPEN, table, number, why)
    return {row.request_id: row for row in rows}
