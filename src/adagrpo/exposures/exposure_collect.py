"""Collect rows of other machines' exposure logs into one folder.

`collected.txt` has a line `SHA256 PATH` for each file whose rows are on disk. Of a whole log, rows in no part are first
put into one, even while a service writes to it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_database import OPEN, waiting_rows
from adagrpo.exposures.exposure_log import Exposure, Feedback, decode, why_refused
from adagrpo.exposures.exposure_store import LocalExposureLog, close_part, read_parts
from adagrpo.storage.hashes import hash_file

COLLECTED = "collected.txt"
OF_A_PART = "exposures.parquet"
AT_ONCE = 5000  # rows per transaction


@dataclass
class Collected:
    """Counts of rows; file, row and reason of refused ones."""

    answers: int = 0
    answers_repeated: int = 0
    feedback: int = 0
    feedback_repeated: int = 0
    refused: list[str] = field(default_factory=list)


def collect_log(sources: Sequence[Path], directory: Path) -> Collected:
    """Collect new rows of files, parts, folders and logs into a log; `UserError` if one is missing."""
    total = Collected()
    for database in sorted({file for source in sources for file in source.rglob(OPEN)}):
        if database.parent.resolve() != directory.resolve():
            total.refused += _left_open(database)
    files = [file for source in sources for file in _files(source)]
    log = LocalExposureLog(directory)
    record = directory / COLLECTED
    try:
        content = record.read_bytes() if record.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # cut off by a kill
            os.truncate(record, len(whole))
        done = {*whole.decode(errors="replace").splitlines()}
        for file in files:
            line = f"{hash_file(file)} {file.resolve()}"
            if line in done:
                continue
            try:
                rows = _rows(file)
                while some := list(islice(rows, AT_ONCE)):
                    shown = [row for row in some if isinstance(row, Exposure)]
                    events = [row for row in some if isinstance(row, Feedback)]
                    recorded, outcomes = log.write(shown), log.feedback(events)
                    total.answers += len(shown)
                    total.answers_repeated += sum(one is not row for one, row in zip(recorded, shown, strict=True))
                    total.feedback += len(events)
                    total.feedback_repeated += outcomes.count("repeated")
                    total.refused += [row for row in some if isinstance(row, str)]
            except UserError as error:  # such as a part still being copied; read next time
                total.refused.append(str(error))
                continue
            with record.open("a", encoding="utf-8") as target:
                target.write(f"{line}\n")
                target.flush()
                os.fsync(target.fileno())
    finally:
        log.close()
    return total


def _left_open(database: Path) -> list[str]:
    """Put open rows into a part; return why any stay out."""
    try:
        close_part(database.parent)
    except UserError as error:
        alone = "" if database.with_name(f"{OPEN}-wal").exists() else "&immutable=1"  # for a read-only folder
        try:
            with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro{alone}", uri=True)) as connection:
                waiting = waiting_rows(connection)
        except sqlite3.Error:
            return [f"{database}: its rows that are in no part stay out ({error})"]
        return [f"{database}: {waiting:,} rows are in no part and stay out ({error})"] if waiting else []
    return []


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    elif source.is_dir():
        parts = {path.parent for path in source.rglob(OF_A_PART)}
        yield from sorted(
            [*(path / OF_A_PART for path in parts), *(f for f in source.rglob("*.jsonl") if f.parent not in parts)]
        )
    else:
        raise UserError(f"{source}: no such file; give files of JSON lines, parts of an exposure log, or their folders")


def _rows(file: Path) -> Iterator[Exposure | Feedback | str]:  # a text: why a row is refused
    if file.name != OF_A_PART:
        with file.open("rb") as content:
            for number, line in enumerate(content, 1):
                try:
                    yield decode(line)
                except ValueError as error:
                    yield f"{file}, line {number}: {error}"
        return
    made: tuple[Callable[..., Any], ...] = (Exposure, Feedback)
    for table, kind, name in zip(read_parts([file.parent]), made, ("exposures", "feedback"), strict=True):
        for number, values in enumerate(table.iter_rows(named=True), 1):
            try:
                yield kind(**values)
            except ValidationError as error:
                yield f"{file.with_name(name)}.parquet, row {number}: {why_refused(error)}"
