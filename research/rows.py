"""Rows of a study: kept as they are measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.report import read_rows
from adagrpo.storage.writing import write_file

__all__ = ["add_row"]


def add_row(results: Path, row: Mapping[str, Any]) -> None:
    """The whole rows and one more, in one exchange: nothing is added to a line that was cut off."""
    lines = [json.dumps(known) + "\n" for known in (*read_rows(results), row)]
    write_file(results, "".join(lines))
