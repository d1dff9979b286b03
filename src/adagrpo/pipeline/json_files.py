"""JSON and JSON Lines files of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.storage.hashes import read_checked_lines
from adagrpo.storage.writing import write_file

EVENTS = "events.jsonl"  # starts, ends and skips of stages, one checksummed line each


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


def read_events(directory: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log, if any; UserError if a row was changed."""
    log = directory / EVENTS
    return read_checked_lines(log) if log.is_file() else []
