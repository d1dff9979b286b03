"""One process at a time in a folder of this program, which also clears what a killed one left there.

The lock file holds the process id and, a line each, the tokens of the processes whose temporary files may be there: its
own, and those of holders that ended before they could clear up. The operating system drops the lock of a process that
ends in whatever way, so a stale one cannot be met.
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
from adagrpo.storage.removal import remove_temporary
from adagrpo.storage.writing import TOKEN, naming

LOCK, WORK = ".lock", ".work"
REPLACED = re.compile(r".+\.([0-9a-f]{16})\.old")


class FolderBusy(UserError):
    """Another process is at work in a folder."""


@contextmanager
def lock_folder(directory: Path, kind: Kind, **facts: str) -> Iterator[None]:
    """Claim a folder, see `adagrpo.storage.marks.claim`, and keep other processes out of it while the block lasts.

    Args:
        directory: to be claimed, see `adagrpo.storage.marks.claim`.

    Raises:
        FolderBusy: another process is at work here; its id is named.
        UserError: it is not this program's, or cannot be written.
    """
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
            _mend(directory, earlier)
            _rewrite(file.fileno(), [TOKEN])
        yield


def at_work(directory: Path) -> str | None:
    """The id of the process that is at work in a folder; None if there is none, or it is not known."""
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
    """Put this process and some tokens into the lock file; the longer content is written first, then cut."""
    content = "".join(f"{line}\n" for line in (os.getpid(), *dict.fromkeys(tokens))).encode()
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    os.fsync(descriptor)


def _mend(directory: Path, tokens: Collection[str]) -> None:
    """Remove what ended processes left half written, and put back what one had taken from its place."""
    remove_temporary(directory, tokens, is_marked)
    work = directory / WORK
    for path in sorted(work.glob("*.old")) if work.is_dir() and not work.is_symlink() else []:
        match = REPLACED.fullmatch(path.name)
        content = None if match is None or match[1] not in tokens or path.is_symlink() else manifest(path)
        if content is None:
            continue
        target = directory / content["kind"]
        if os.path.lexists(target):
            remove_artifact(path)
        else:
            path.rename(target)
