"""Folders of this program, marked by a file that is written first.

    .adagrpo    {"kind": "run", "schema_version": 1}; a run that continues another one names it as `source`

Only new, empty or equally marked folders are claimed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from adagrpo.errors import UserError
from adagrpo.storage.writing import make_folder, naming

MARK = ".adagrpo"
SCHEMA_VERSION = 1
Kind = Literal["run", "refit", "refresh", "comparison", "list of recommendations", "exposure log", "loop", "experiment"]


def is_marked(directory: Path) -> bool:
    """Check whether a folder has a mark of any kind."""
    mark = directory / MARK
    return mark.is_file() and not mark.is_symlink()


def read_mark(directory: Path) -> dict[str, Any]:
    """Read the mark of a folder, empty after a crash; UserError if it is damaged or of an unknown version."""
    path = directory / MARK
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text) if text else {}
        version = content.get("schema_version", SCHEMA_VERSION)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged; the folder is not known as one of this program any more") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; take another folder")
    return dict(content)


def check_kind(directory: Path, kind: Kind, option: str = "--out") -> bool:
    """Return whether a folder is of a kind, False if it can be claimed; UserError for anything else there."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; {option} takes a folder")
    if is_marked(directory):
        own_kind = read_mark(directory).get("kind", kind)
        if own_kind != kind:
            wanted = "a new folder"
            if option == "--run":
                inner = next(filter(is_marked, sorted(directory.iterdir())), None)  # of a comparison, one of its runs
                wanted = _named(kind) + ("" if inner is None else f", such as {inner}")
            raise UserError(f"{directory}: holds {_named(own_kind)}, not {_named(kind)}; {option} takes {wanted}")
        return True
    if directory.is_symlink() and not directory.exists():
        raise UserError(f"{directory}: is a link to nothing; {option} takes a folder")
    if directory.exists() and any(directory.iterdir()):
        raise UserError(
            f"{directory}: is not empty and no {kind} of this program (it has no file {MARK});"
            f" {option} takes a new folder"
        )
    return False


def claim(directory: Path, kind: Kind, option: str = "--out", **facts: str) -> None:
    """Create and mark a folder; UserError: see `check_kind`."""
    if check_kind(directory, kind, option) and read_mark(directory):
        return
    make_folder(directory)
    content = json.dumps({"kind": kind, "schema_version": SCHEMA_VERSION, **facts}) + "\n"
    mark = directory / MARK
    with naming(mark), mark.open("w", encoding="utf-8") as file:  # new, or left empty by a crash
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _named(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
