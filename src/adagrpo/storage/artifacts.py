"""Crash-safe folders: a reader sees a whole artifact or none, and nothing of anybody else's is ever removed.

A folder is written beside its place, its files are synced to disk, `manifest.json` lists them with size and sha256 and
ends with a sha256 of itself, and one rename puts it in place. Readers verify. Weights are safetensors, everything else
JSON, YAML, Parquet or JSON lines; nothing is ever unpickled.

What is removed is known by name: the files that a manifest lists, those that a caller lists, and temporary files with
the token of a process that is known to have written here. A file of another name is a foreign file, and so is every
link: both are left where they are, and a link is never followed.

Versions of the manifest: 1 had no hash of itself and is still read; a newer or unknown one is refused by its number.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError

__all__ = [
    "SCHEMA_VERSION",
    "TOKEN",
    "cached_hash",
    "check_replaceable",
    "checked_line",
    "foreign_files",
    "hash_file",
    "hash_json",
    "make_folder",
    "manifest",
    "naming",
    "publish",
    "read_checked_lines",
    "remove",
    "remove_artifact",
    "remove_temporary",
    "seal",
    "temporary",
    "verify",
    "verify_file",
    "with_hash",
    "without_hash",
    "write_file",
    "written_beside",
]

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)
MANIFEST = "manifest.json"
CHECK_DIGITS = 8
TOKEN = secrets.token_hex(8)  # of this process; in the names of its temporary files, so that they are known as its own
TEMPORARY = re.compile(r"\..+\.([0-9a-f]{16})\.tmp")
OS_ERROR = re.compile(r"\(os error (\d+)\)")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
HASHES: dict[tuple[str, int, int, int], str] = {}  # of files that have been hashed, by path, inode, size and time


def hash_file(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """The sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_line(row: Mapping[str, Any]) -> str:
    """A line of a log, with a check of its content: the first digits of the sha256 of the rest."""
    return json.dumps({**row, "check": hash_json(row)[:CHECK_DIGITS]}) + "\n"


def read_checked_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a log that `checked_line` wrote.

    Raises:
        UserError: a line is not as it was written.
    """
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
    """The content of a JSON file, with a hash of the rest as its last key, `sha256`."""
    return {**content, "sha256": hash_json(dict(content))}


def without_hash(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_hash` was given.

    Raises:
        ValueError: the content is not as it was written, or has no hash.
    """
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if content.get("sha256") != hash_json(rest):
        raise ValueError("not as it was written")
    return rest


def temporary(path: Path) -> Path:
    """Where this process writes what is to become `path`: beside it, under a name that no other process takes."""
    return path.with_name(f".{path.name}.{TOKEN}.tmp")


def write_file(path: Path, content: str) -> None:
    """Write a text file so that a crash leaves the old content or the new, never a part.

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
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def written_beside(path: Path, holder: str = TOKEN) -> Iterator[Path]:
    """Where to write a file that is `path`, synced to disk, when the block ends, with the mode of other new files.

    For libraries whose own temporary files have names that nothing tells from somebody else's: theirs are in a folder
    that is known as this process's.

    Args:
        path: of the file.
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
        _sync_folder(path.parent)
    finally:
        remove(folder, lambda name: True)


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
        _sync_folder(folder.parent)


def seal(
    directory: Path,
    *,
    kind: str,
    fingerprint: str,
    made_from: Mapping[str, Any] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Sync every file below a folder and write its manifest.

    Args:
        directory: the finished, still unpublished folder.
        kind: what the folder holds, for the reader's error messages.
        fingerprint: hash of everything the content was made from, see `manifest`.
        made_from: that itself, JSON-able, for whoever wants to know why the fingerprint is another one.
        files: those that the manifest lists, where there are others beside them, with what else it says of each.
    """
    listed = {}
    for path in sorted(directory.rglob("*") if files is None else (directory / name for name in files)):
        if path.is_file() and path != directory / MANIFEST:
            with naming(path), path.open("rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(directory).as_posix()
            listed[name] = {"size": path.stat().st_size, "sha256": hash_file(path), **(files or {}).get(name, {})}
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "fingerprint": fingerprint, "files": listed}
    content |= {} if made_from is None else {"made_from": json.loads(json.dumps(made_from))}
    write_file(directory / MANIFEST, _written(content | {"sha256": hash_json(content)}))
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        _sync_folder(folder)


def publish(directory: Path, target: Path) -> None:
    """Put a sealed folder into its place, replacing the artifact that is there.

    Where the system can exchange two names, the place holds the old folder or the new one at every moment. Elsewhere
    there is a moment between two renames at which it holds none; the old one is then beside `directory`, under its name
    and `.<token>.old`.

    Raises:
        UserError: what is there is no artifact, or holds files that are not of it; they are left alone.
    """
    make_folder(target.parent)
    check_replaceable(target)
    replaced = None
    if not os.path.lexists(target):
        directory.rename(target)
    elif _exchange(directory, target):
        replaced = directory
    else:
        replaced = directory.with_name(f"{directory.name}.{TOKEN}.old")
        target.rename(replaced)
        directory.rename(target)
    _sync_folder(target.parent)
    _sync_folder(directory.parent)
    if replaced is not None:
        remove_artifact(replaced)


def check_replaceable(target: Path) -> None:
    """Refuse to replace what is not an artifact and nothing else.

    Raises:
        UserError: a link has the name, or the folder holds a file that is not of the artifact; it is named.
    """
    foreign = foreign_files(target, _listed(target).__contains__)
    if foreign:
        raise UserError(f"{foreign[0]}: not made by this program; move it away, so that {target} can be replaced")


def remove_artifact(directory: Path) -> None:
    """Remove the files that a manifest lists, and each folder that is then empty."""
    remove(directory, _listed(directory).__contains__)


def foreign_files(directory: Path, belongs: Callable[[str], bool]) -> list[Path]:
    """What stands in a folder and is not known: files of other names, and all links, which are not followed.

    Args:
        directory: itself no link, or it is the foreign file.
        belongs: whether a file belongs here, by its path relative to the folder, `/`-separated.
    """
    if directory.is_symlink() or not directory.is_dir():
        return [directory] if os.path.lexists(directory) else []
    foreign = []
    for folder, inner, files in os.walk(directory):
        here = Path(folder)
        foreign += [here / name for name in inner if (here / name).is_symlink()]
        for path in (here / name for name in files):
            if path.is_symlink() or not path.is_file() or not belongs(path.relative_to(directory).as_posix()):
                foreign.append(path)
    return sorted(foreign)


def remove(directory: Path, belongs: Callable[[str], bool]) -> None:
    """Remove the known files of a folder, and each folder that is then empty. See `foreign_files`."""
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
        directory: where to look.
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


def _listed(directory: Path) -> set[str]:
    """The files that an artifact consists of, and those of the artifacts whose place is in it; none if there is none.

    An artifact of the kind `ranker/report` has its place in one of the kind `ranker`, under the name `report`.
    """
    content = manifest(directory)
    if content is None:
        return set()
    names = {MANIFEST, *content["files"]}
    for path in directory.rglob(f"*/{MANIFEST}"):
        inner = path.parent.relative_to(directory).as_posix()
        nested = None if path.is_symlink() else manifest(path.parent)
        if nested is not None and nested["kind"] == f"{content['kind']}/{inner}":
            names |= {f"{inner}/{name}" for name in (MANIFEST, *nested["files"])}
    return names


def manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is no sealed artifact.

    Raises:
        UserError: the manifest cannot be read, is not as it was written, or is of a version that this program does not
            read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        version = content["schema_version"]
        if version in READABLE:
            _check(text, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged manifest; delete the folder to have it made again") from error
    if version not in READABLE:
        reads = " and ".join(map(str, READABLE))
        raise UserError(f"{path}: schema version {version}, this program reads versions {reads}; delete the folder")
    return dict(content)


def verify(directory: Path) -> Mapping[str, str]:
    """Check every file of an artifact against its manifest.

    Returns:
        The sha256 of each file, by path relative to the folder.

    Raises:
        UserError: no manifest, or a file is missing or differs; the file is named.
    """
    content = manifest(directory)
    if content is None:
        raise UserError(f"{directory}: no {MANIFEST} here; run the stage that makes it")
    return {name: verify_file(directory, name, content) for name in content["files"]}


def verify_file(directory: Path, name: str, content: Mapping[str, Any]) -> str:
    """Check one file of an artifact against the manifest that was read.

    Returns:
        Its sha256.

    Raises:
        UserError: it is not of the artifact, leaves it, is missing or differs; the file is named.
    """
    path, entry = directory / name, content["files"].get(name)
    if not path.resolve().is_relative_to(directory.resolve()):
        raise UserError(f"{directory / MANIFEST}: '{name}' leaves the folder")
    if entry is None:
        raise UserError(f"{path}: not of what was made here; delete {directory} to have it made again")
    if not path.is_file():
        raise UserError(f"{path}: missing; delete {directory} to have it made again")
    if path.stat().st_size != entry["size"] or cached_hash(path) != entry["sha256"]:
        raise UserError(
            f"{path}: content differs from the manifest, changed after it was made;"
            f" delete {directory} to have it made again"
        )
    return str(entry["sha256"])


def cached_hash(path: Path) -> str:
    """The sha256 of a file; one that has not changed since this process hashed it is not read again.

    A file written within the last second is hashed each time: it may change again under the same time stamp.
    """
    status = path.stat()
    key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if key in HASHES:
        return HASHES[key]
    digest = hash_file(path)
    if status.st_mtime_ns < time.time_ns() - 1_000_000_000:
        HASHES[key] = digest
    return digest


def _written(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _check(text: str, content: dict[str, Any]) -> None:
    """Raise one of what `manifest` catches where a manifest is not, byte for byte, what `seal` wrote."""
    for entry in content["files"].values():
        entry["size"], entry["sha256"]
    recorded = content.get("sha256")
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if text != _written(content) or (content["schema_version"] > 1 and recorded != hash_json(rest)):
        raise ValueError("not as it was written")


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one move; False where the system or the file system cannot (renameat2 of Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
