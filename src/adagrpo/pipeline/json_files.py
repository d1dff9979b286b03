"""JSON and JSON Lines files of a run, and its events: starts, ends and skips of stages, one checksummed line each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adagrpo.storage.hashes import checked_line, read_checked_lines
from adagrpo.storage.writing import naming, write_file


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the object of each line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def json_lines(content: Mapping[str, Any], *, allow_nan: bool = True) -> str:
    """Return an object as indented JSON; `allow_nan=False` refuses NaN and infinities."""
    return json.dumps(content, indent=1, allow_nan=allow_nan) + "\n"


def write_json(path: Path, content: Mapping[str, Any], *, allow_nan: bool = True) -> None:
    """Write an object; see `json_lines`."""
    write_file(path, json_lines(content, allow_nan=allow_nan))


EVENTS = "events.jsonl"


def append_event(directory: Path, stage: str, event: str, seconds: float) -> None:
    """Append a row to a run's log."""
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "stage": stage,
        "event": event,
        "seconds": round(seconds, 3),
    }
    descriptor = os.open(directory / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with naming(directory / EVENTS), os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(checked_line(row))


def read_events(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log, if any; UserError if a row was changed."""
    log = directory / EVENTS
    return read_checked_lines(log) if log.is_file() else []


def cut_half_line(directory: Path) -> None:
    """Drop an incomplete last line after a crash."""
    path = directory / EVENTS
    if path.is_file() and not path.is_symlink():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
