"""Removal of known files by name; of anybody else's nothing ever is removed.

A known file is one that a caller names, or a temporary file with the token of a process that is known to have written
here. A file of another name is unknown, and so is every link: both are left where they are, and a link is never
followed.
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
    """List the unknown files of a folder: those of other names, and all links, which are not followed.

    Args:
        directory: itself no link, or it is the unknown file.
        belongs: whether a file belongs here, by its path relative to the folder, `/`-separated.
    """
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
    """Remove the known files of a folder, and each folder that is then empty. See `unknown_files`."""
    if directory.is_symlink() or not directory.is_dir():
        return
    for folder, _, files in os.walk(directory, topdown=False):
        here = Path(folder)
        for name in sorted(files, key=lambda name: name == MANIFEST):  # the manifest last: it says what there was
            path = here / name
            if not path.is_symlink() and belongs(path.relative_to(directory).as_posix()):
                path.unlink()
        with suppress(OSError):  # something stays in it
            here.rmdir()


def remove_temporary(directory: Path, tokens: Collection[str], stop: Callable[[Path], bool]) -> None:
    """Remove the temporary files and folders below a folder that killed processes of these tokens left.

    Args:
        tokens: of processes that are known to have ended.
        stop: whether a folder below is to be left alone, because it has an owner of its own.
    """
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
