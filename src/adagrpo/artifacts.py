"""Crash-safe folders: a reader sees a whole artifact or none.

A folder is written beside its place, its files are synced to disk, `manifest.json` lists them with size and sha256 and
ends with a sha256 of itself, and one rename puts it in place. Readers verify. Weights are safetensors, everything else
JSON, YAML, Parquet or JSON lines; nothing is ever unpickled.

Versions of the manifest: 1 had no hash of itself and is still read; a newer or unknown one is refused by its number.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError

__all__ = [
    "SCHEMA_VERSION",
    "hash_file",
    "hash_json",
    "make_folder",
    "manifest",
    "mend",
    "naming",
    "publish",
    "seal",
    "verify",
    "write_file",
]

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)
MANIFEST = "manifest.json"
LOCK = ".lock"  # of a run directory
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
REPLACED = re.compile(r"\.(.+)\.old")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def hash_file(path: Path) -> str:
    """The sha256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """The sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_file(path: Path, content: str) -> None:
    """Write a text file so that a crash leaves the old content or the new, never a part."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an `OSError` that names no file, as that of a full disk does, name the one that was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each name synced to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync_folder(folder.parent)


def seal(directory: Path, *, kind: str, fingerprint: str) -> None:
    """Sync every file below a folder and write its manifest.

    Args:
        directory: the finished, still unpublished folder.
        kind: what the folder holds, for the reader's error messages.
        fingerprint: hash of everything the content was made from, see `manifest`.
    """
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path != directory / MANIFEST:
            with naming(path), path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "fingerprint": fingerprint, "files": files}
    write_file(directory / MANIFEST, _written(content | {"sha256": hash_json(content)}))
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        _sync_folder(folder)


def publish(directory: Path, target: Path) -> None:
    """Put a sealed folder into its place, replacing what is there.

    Where the system can exchange two names, the place holds the old folder or the new one at every moment. Elsewhere
    there is a moment between two renames at which it holds none; `mend` puts the old one back after a crash there.
    """
    make_folder(target.parent)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if not target.exists():
        directory.rename(target)
    elif not _exchange(directory, target):
        target.rename(old)
        directory.rename(target)
    _sync_folder(target.parent)
    _sync_folder(directory.parent)
    for replaced in (directory, old):
        shutil.rmtree(replaced, ignore_errors=True)


def mend(directory: Path) -> None:
    """Remove what a killed process left half written below a folder, and put back what it had taken from its place.

    Only the holder of the folder's lock may call this. Folders below that have a lock of their own are left alone.
    """
    for folder, inner, files in os.walk(directory):
        here = Path(folder)
        for name in filter(TEMPORARY.fullmatch, files):
            (here / name).unlink()
        for name, found in [(name, REPLACED.fullmatch(name)) for name in inner]:
            if found is not None and (here / found[1]).exists():
                shutil.rmtree(here / name)
            elif found is not None:
                (here / name).rename(here / found[1])
        inner[:] = [name for name in inner if not (here / name / LOCK).exists() and (here / name).exists()]


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
    for name, entry in content["files"].items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{directory / MANIFEST}: '{name}' leaves the folder")
        if not path.is_file():
            raise UserError(f"{path}: missing; delete {directory} to have it made again")
        if path.stat().st_size != entry["size"] or hash_file(path) != entry["sha256"]:
            raise UserError(f"{path}: content differs from the manifest; delete {directory} to have it made again")
    return {name: entry["sha256"] for name, entry in content["files"].items()}


def _written(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _check(text: str, content: dict[str, Any]) -> None:
    """Raise one of what `manifest` catches where a manifest is not, byte for byte, what `seal` wrote."""
    for entry in content["files"].values():
        entry["size"], entry["sha256"]
    told = content.get("sha256")
    rest = {name: value for name, value in content.items() if name != "sha256"}
    if text != _written(content) or (content["schema_version"] > 1 and told != hash_json(rest)):
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
