"""Files that are written whole or not at all.

A file is written beside its place under a name with the token of this process, synced to disk, and renamed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.storage.removal import remove

TOKEN = secrets.token_hex(8)  # of this process; in the names of its temporary files, so that they are known as its own
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def temporary(path: Path) -> Path:
    """Return a temporary name next to `path` that no other process takes."""
    return path.with_name(f".{path.name}.{TOKEN}.tmp")


def write_file(path: Path, content: str, *, keep: bool = False) -> None:
    """Write a text file so that a crash leaves the old content or the new, never a part.

    Args:
        keep: a file that is there is left as it is; of several processes that write at once, one has written.

    Raises:
        UserError: a link or a folder has the name already.
    """
    if path.is_symlink() or path.is_dir():
        what = "link" if path.is_symlink() else "folder"
        raise UserError(f"{path}: is a {what}, where a file is to be written; move it away")
    make_folder(path.parent)
    work = temporary(path)
    try:
        with naming(path), work.open("x", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep:
            with suppress(FileExistsError):
                os.link(work, path)
        else:
            work.replace(path)
    finally:
        work.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def atomic_file(path: Path, holder: str = TOKEN) -> Iterator[Path]:
    """Yield a place to write a file that becomes `path`, synced to disk, when the block ends; mode of new files.

    For libraries whose own temporary files have names that nothing tells from somebody else's: theirs are in a folder
    that is known as this process's.

    Args:
        holder: token of the process that holds the lock of the folder, if this is a worker of it: then what a killed
            worker leaves is known as that one's.
    """
    folder = temporary(path) if holder == TOKEN else path.with_name(f".{path.name}.{TOKEN}.{holder}.tmp")
    folder.mkdir()
    place = folder / path.name
    try:
        with naming(path):
            yield place
            with place.open("rb") as file:
                os.fsync(file.fileno())
        place.chmod(folder.stat().st_mode & 0o666)
        place.replace(path)
        sync_folder(path.parent)
    finally:
        remove(folder, lambda name: True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a place for a folder that becomes `path`, synced to disk, when the block ends; an empty one is replaced.

    It is locked while it is made. So what a killed process left of a folder of this name is known, and removed.
    """
    make_folder(path.parent)
    for left in path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 16}.tmp"):
        with suppress(OSError), _locked(left):
            remove(left, lambda name: True)
    work = temporary(path)
    work.mkdir()
    try:
        with ExitStack() as held:
            with suppress(OSError):  # a file system without locks: what is left there stays
                held.enter_context(_locked(work))
            yield work
            for place in (*work.rglob("*"), work):
                with naming(path):
                    sync_folder(place)
            work.rename(path)
        sync_folder(path.parent)
    except BaseException:
        remove(work, lambda name: True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; an OSError where another process does, or it is a link."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system that names no file, as that of a full disk does, name the one that was being written.

    Libraries in Rust tell such an error by its words alone: `... (os error 28)`.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        match = OS_ERROR.search(str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each name synced to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
