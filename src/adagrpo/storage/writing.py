"""Atomic writes (temporary file, sync, rename), and removal of known files only; links are never known or followed."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path

from adagrpo.errors import UserError

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
    """Remove temporary files of dead processes; `stop` at subfolders with an owner of their own."""
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


TOKEN = secrets.token_hex(8)  # of this process; in the names of its temporary files, so that they are known as its own
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def temporary(path: Path) -> Path:
    """Return a temporary name next to `path`, unique to this process."""
    return path.with_name(f".{path.name}.{TOKEN}.tmp")


def write_file(path: Path, content: str, *, keep: bool = False) -> None:
    """Write a text file atomically, or keep an existing one; UserError if the path is a link or a folder."""
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
    """Yield a path whose file becomes `path` at the end of the block, in a temporary folder of this process.

    A worker gives as `holder` the token of the process with the folder's lock, under which its remains are cleaned up.
    """
    folder = temporary(path) if holder == TOKEN else path.with_name(f".{path.name}.{TOKEN}.{holder}.tmp")
    folder.mkdir()
    written = folder / path.name
    try:
        with naming(path):
            yield written
            with written.open("rb") as file:
                os.fsync(file.fileno())
        written.chmod(folder.stat().st_mode & 0o666)
        written.replace(path)
        sync_folder(path.parent)
    finally:
        remove(folder, lambda name: True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder, locked meanwhile, that becomes `path` at the end of the block; an empty `path` is replaced."""
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
            for entry in (*work.rglob("*"), work):
                with naming(path):
                    sync_folder(entry)
            work.rename(path)
        sync_folder(path.parent)
    except BaseException:
        remove(work, lambda name: True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to system errors without a file name."""
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
    """Create a folder and its parents, synced."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Sync a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
