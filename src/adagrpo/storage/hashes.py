"""Hashes of files and JSON values, and log lines and JSON files that contain their own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError

CHECK_DIGITS = 8
HASHES: dict[tuple[str, int, int, int], str] = {}  # of files that have been hashed, by path, inode, size and time


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_hash(path: Path) -> str:
    """Return the sha256 of a file, cached until it changes, unless it was written within the last second."""
    status = path.stat()
    key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key in HASHES:
        return HASHES[key]
    digest = hash_file(path)
    if status.st_mtime_ns < time.time_ns() - 1_000_000_000:
        HASHES[key] = digest
    return digest


def hash_json(value: Any) -> str:
    """Return the sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_line(row: Mapping[str, Any]) -> str:
    """Format a log line with `check`, the first digits of the sha256 of the rest."""
    return json.dumps({**row, "check": hash_json(row)[:CHECK_DIGITS]}) + "\n"


def read_checked_lines(path: Path) -> list[dict[str, Any]]:
    """Read lines of `checked_line`; UserError if a line is damaged."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            if row.pop("check") != hash_json(row)[:CHECK_DIGITS]:
                raise ValueError
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} is not as it was written; the file is a log, it may be deleted"
            ) from error
        rows.append(row)
    return rows


def with_hash(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the content's hash as `sha256`."""
    return {**content, "sha256": hash_json(dict(content))}


def without_hash(content: Mapping[str, Any]) -> dict[str, Any]:
    """Verify and remove the hash; ValueError if it is missing or differs."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if content.get("sha256") != hash_json(rest):
        raise ValueError("not as it was written")
    return rest
