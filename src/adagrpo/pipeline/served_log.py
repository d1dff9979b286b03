"""The exposure log of a service as the data of a run: what was logged until now, and nothing that comes later."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.serving.exposure_parts import KIND, parts_of, rotate
from adagrpo.storage.marks import check_kind

__all__ = ["latest_exposures"]


def latest_exposures(directory: Path, *, publish: bool) -> dict[str, Any]:
    """`data.exposures` of a recipe: the log, up to the newest part that it has now.

    Args:
        directory: of the log; a service may be writing to it.
        publish: put what is in no part yet into one, so that it is read too.

    Raises:
        UserError: the folder is no exposure log, or nothing was logged.
    """
    if not directory.is_dir() or not check_kind(directory, KIND, "--exposures"):
        raise UserError(f"{directory}: no exposure log; give the folder that `adagrpo serve` logs into")
    if publish:
        try:
            rotate(directory)
        except sqlite3.Error as error:
            raise UserError(f"{directory}: what is in no part yet cannot be read ({error})") from error
    parts = parts_of(directory)
    if not parts:
        raise UserError(f"{directory}: nothing was logged there yet")
    return {"path": str(directory.resolve()), "through": int(parts[-1].name)}
