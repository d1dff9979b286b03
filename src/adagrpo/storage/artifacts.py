"""Crash-safe artifact folders: a reader sees a complete artifact or none.

A folder is written under a temporary name, synced, sealed with `manifest.json` (size and sha256 of each file, and of
itself, but in version 1) and renamed. Readers verify; nothing is unpickled.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from adagrpo.errors import UserError
from adagrpo.storage.hashes import cached_hash, hash_file, with_hash, without_hash
from adagrpo.storage.marks import is_marked, read_mark
from adagrpo.storage.writing import MANIFEST, TOKEN, make_folder, naming, remove, sync_folder, unknown_files, write_file

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def seal(
    directory: Path,
    *,
    kind: str,
    fingerprint: str,  # hash of all inputs
    made_from: Mapping[str, Any] | None = None,  # those inputs, JSON-able
    files: Mapping[str, Mapping[str, Any]] | None = None,  # files to list, with extra manifest entries; None lists all
) -> None:
    """Sync a complete folder and write its manifest."""
    listed = {}
    for path in sorted(directory.rglob("*") if files is None else (directory / name for name in files)):
        if path.is_file() and path != directory / MANIFEST:
            with naming(path), path.open("rb") as file:
                os.fsync(file.fileno())
            name = path.relative_to(directory).as_posix()
            listed[name] = {"size": path.stat().st_size, "sha256": hash_file(path), **(files or {}).get(name, {})}
    content = {"schema_version": SCHEMA_VERSION, "kind": kind, "fingerprint": fingerprint, "files": listed}
    content |= {} if made_from is None else {"made_from": json.loads(json.dumps(made_from))}
    write_file(directory / MANIFEST, _written(with_hash(content)))
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        sync_folder(folder)


def publish(directory: Path, target: Path) -> None:
    """Move a sealed folder to its target, replacing the artifact there, if any; UserError as in `check_replaceable`.

    Atomic where the system supports it; otherwise the target is briefly missing, and the old artifact is next to
    `directory`, with the suffix `.<token>.old`.
    """
    content = manifest(directory)
    assert content is not None, "sealed before"
    kind = content["kind"]
    make_folder(target.parent)
    check_replaceable(target, kind)
    replaced = None
    if not os.path.lexists(target):
        directory.rename(target)
    elif _exchange(directory, target):
        replaced = directory
    else:
        replaced = directory.with_name(f"{directory.name}.{TOKEN}.old")
        target.rename(replaced)
        directory.rename(target)
    sync_folder(target.parent)
    sync_folder(directory.parent)
    if replaced is not None:
        remove_artifact(replaced, kind)


def check_replaceable(target: Path, kind: str, writes: Callable[[str], bool] = lambda name: False) -> None:
    """Check that a target is free or an artifact of the same kind, which may hold nested ones, `<kind>/<name>`.

    UserError if it is a file or link, of another kind, lacks its manifest, or holds a file of none, see `writes`.
    """
    if target.is_file():
        raise UserError(f"{target}: is a file, where a folder is to be written; move it away")
    there = read_mark(target).get("kind", "run") if is_marked(target) else (manifest(target) or {}).get("kind", kind)
    if there != kind:
        raise UserError(f"{target}: holds '{there}', not '{kind}'; take another folder, or move this one away")
    unknown = unknown_files(target, _listed(target, kind).__contains__)
    if unknown and manifest(target) is None:
        unknown = [path for path in unknown if path.is_symlink() or not writes(path.name)]
        if not unknown:
            raise UserError(f"{target / MANIFEST}: missing; delete {target} to have it made again")
    if unknown:
        raise UserError(f"{unknown[0]}: not made by this program; move it away, so that {target} can be replaced")


def remove_artifact(directory: Path, kind: str | None = None) -> None:
    """Remove the files in a manifest and emptied folders; `kind` as in `check_replaceable`."""
    remove(directory, _listed(directory, kind).__contains__)


def _listed(directory: Path, kind: str | None) -> set[str]:
    """Return the files of an artifact and those nested in it (kind `ranker/report` in `ranker`, as `report`)."""
    content = manifest(directory)
    if content is None and kind is None:
        return set()
    names = set() if content is None else {MANIFEST, *content["files"]}
    kind = kind if content is None else content["kind"]
    for path in directory.rglob(f"*/{MANIFEST}"):
        inner = path.parent.relative_to(directory).as_posix()
        nested = None if path.is_symlink() else manifest(path.parent)
        if nested is not None and nested["kind"] == f"{kind}/{inner}":
            names |= {f"{inner}/{name}" for name in (MANIFEST, *nested["files"])}
    return names


def manifest(directory: Path, remedy: str | None = None) -> dict[str, Any] | None:
    """Return the manifest of a folder, None if not sealed; UserError if it is damaged or of an unknown version."""
    path = directory / MANIFEST
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)  # each caller its own, as some change it
        version = content["schema_version"]
        if version in READABLE:
            _check(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged manifest; {remedy or 'delete the folder to have it made again'}") from error
    if version not in READABLE:
        reads = " and ".join(map(str, READABLE))
        raise UserError(
            f"{path}: schema version {version}, this program reads versions {reads}; {remedy or 'delete the folder'}"
        )
    return dict(content)


@lru_cache(maxsize=1024)  # a command reads each manifest many times
def _check(text: str) -> None:
    content = json.loads(text)
    for entry in content["files"].values():
        entry["size"], entry["sha256"]
    if content["schema_version"] > 1:
        without_hash(content)
    if text != _written(content):
        raise ValueError("not as it was written")


def verify(directory: Path, remedy: str | None = None) -> Mapping[str, str]:
    """Check files against the manifest, return sha256 by relative path; UserError if one is missing or differs."""
    content = manifest(directory, remedy)
    if content is None:
        raise UserError(f"{directory}: no {MANIFEST} here; {remedy or 'run the stage that makes it'}")
    return {name: verify_file(directory, name, content, remedy) for name in content["files"]}


def verify_file(directory: Path, name: str, content: Mapping[str, Any], remedy: str | None = None) -> str:
    """Check one file of a manifest, return its sha256; UserError if it is not listed, outside, missing or different."""
    path, entry = directory / name, content["files"].get(name)
    remedy = remedy or f"delete {directory} to have it made again"
    if not path.resolve().is_relative_to(directory.resolve()):
        raise UserError(f"{directory / MANIFEST}: '{name}' leaves the folder")
    if entry is None:
        raise UserError(f"{path}: not of what was made here; {remedy}")
    if not path.is_file():
        raise UserError(f"{path}: missing; {remedy}")
    if path.stat().st_size != entry["size"] or cached_hash(path) != entry["sha256"]:
        raise UserError(f"{path}: content differs from the manifest, changed after it was made; {remedy}")
    return str(entry["sha256"])


def _written(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _exchange(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one))
