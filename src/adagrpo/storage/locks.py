"""One process at a time per folder, which also cleans up after killed ones.

The lock file holds the process id and, one per line, the tokens of processes that may have left temporary files. The
operating system releases the lock of a dead process.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.storage.artifacts import manifest, remove_artifact
from adagrpo.storage.marks import Kind, claim, is_marked
from adagrpo.storage.writing import TOKEN, naming, remove_temporary

LOCK, WORK = ".lock", ".work"
REPLACED = re.compile(r".+\.([0-9a-f]{16})\.old")


class FolderBusy(UserError):
    """Another process holds the lock of a folder."""


@contextmanager
def lock_folder(directory: Path, kind: Kind, **facts: str) -> Iterator[None]:
    """Claim and lock a folder; FolderBusy if locked, UserError if not ours or not writable."""
    try:
        claim(directory, kind, **facts)
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written ({error.strerror}); give a folder that can be, with --out"
        ) from error
    with os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (file.readline().strip()) or "of unknown id"
            raise FolderBusy(f"{directory}: process {holder} is at work here; wait until it ends") from error
        earlier = [line.strip() for line in file.readlines()[1:]]
        with naming(directory / LOCK):
            _rewrite(file.fileno(), [*earlier, TOKEN])
            remove_temporary(directory, earlier, is_marked)
            work = directory / WORK
            for path in sorted(work.glob("*.old")) if work.is_dir() and not work.is_symlink() else []:
                match = REPLACED.fullmatch(path.name)
                content = None if match is None or match[1] not in earlier or path.is_symlink() else manifest(path)
                if content is not None and os.path.lexists(directory / content["kind"]):
                    remove_artifact(path)
                elif content is not None:
                    path.rename(directory / content["kind"])
            _rewrite(file.fileno(), [TOKEN])
        yield


def at_work(directory: Path) -> str | None:
    """Return the id of the process that holds the lock, if any."""
    try:
        with (directory / LOCK).open(encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.readline().strip() or "of unknown id"
    except OSError:
        pass
    return None


def _rewrite(descriptor: int, tokens: Collection[str]) -> None:
    content = "".join(f"{line}\n" for line in (os.getpid(), *dict.fromkeys(tokens))).encode()
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    os.fsync(descriptor)
