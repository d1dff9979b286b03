"""Removal of known files only: those the caller names, and temporary files with the token of a known process.

Links are never known or followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"  # of an artifact, see `adagrpo.storage.artifacts`
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{16})\.tmp")


def unknown_files(directory: Path, belongs: Callable[[str], bool]) -> list[Path]:
    """List a folder's files that do not belong, by `/`-separated relative path, and all links."""
    if directory.is_symlink() or not directory.is_dir():
        return [directory] if os.path.lexists(directory) else []
    unknown = []
    for folder, inner, files in os.walk(directory):
        here = Path(folder)
        unknown += [here / name for name in inner if (here / name).is_symlink()]
        for path in (here / name for name in files):
            if path.is_symlink() or not path.is_file() or not belongs(path.relative_to(directory).as_posix()):
                unknown.append(path)
    return sorted(unknown)


def remove(directory: Path, belongs: Callable[[str], bool]) -> None:
    """Remove known files and emptied folders; see `unknown_files`."""
    if directory.is_symlink() or not directory.is_dir():
        return
    for folder, _, files in os.walk(directory, topdown=False):
        here = Path(folder)
        for name in sorted(files, key=lambda name: name == MANIFEST):  # the manifest last: it lists the others
            path = here / name
            if not path.is_symlink() and belongs(path.relative_to(directory).as_posix()):
                path.unlink()
        with suppress(OSError):  # something stays in it
            here.rmdir()


def remove_temporary(directory: Path, tokens: Collection[str], stop: Callable[[Path], bool]) -> None:
    """Remove temporary files and folders of dead processes; `stop` at subfolders with an owner of their own."""
    for folder, inner, files in os.walk(directory):
        here = Path(folder)
        for name in files:
            match = TEMPORARY.fullmatch(name)
            if match is not None and match[1] in tokens and not (here / name).is_symlink():
                (here / name).unlink()
        for name in inner:
            match = TEMPORARY.fullmatch(name)
            if match is not None and match[1] in tokens:
                remove(here / name, lambda name: True)
        inner[:] = [name for name in inner if not stop(here / name)]
