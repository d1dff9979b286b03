"""Crash-safe folders: a reader sees a whole artifact or none.

A folder is written beside its place, its files are synced to disk, `manifest.json` lists them with size and sha256, and
one rename puts it in place. Readers verify. Weights are safetensors, everything else JSON, YAML, Parquet or JSON lines;
nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError

__all__ = ["SCHEMA_VERSION", "hash_file", "hash_json", "manifest", "publish", "seal", "verify", "write_file"]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


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
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "fingerprint": fingerprint, "files": files}
    write_file(directory / MANIFEST, json.dumps(content, indent=1, sort_keys=True) + "\n")
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        _sync_folder(folder)


def publish(directory: Path, target: Path) -> None:
    """Rename a sealed folder into its place, replacing what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    directory.rename(target)
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None where there is no sealed artifact.

    Raises:
        UserError: the manifest cannot be read or was written by another version of the format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version == SCHEMA_VERSION:
            _check_entries(content["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged manifest; delete the folder to have it made again") from error
    if version != SCHEMA_VERSION:
        raise UserError(f"{path}: schema version {version}, this program reads version {SCHEMA_VERSION}")
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


def _check_entries(files: Any) -> None:
    """Raise KeyError, TypeError or AttributeError where an entry lacks what `seal` writes about a file."""
    for entry in files.values():
        entry["size"], entry["sha256"]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
