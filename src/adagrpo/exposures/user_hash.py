"""Keyed hashes of user ids: HMAC-SHA256. Deployments that share a key can join their logs."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from adagrpo.errors import UserError
from adagrpo.storage.writing import sync_folder, temporary

VARIABLE = "ADAGRPO_USER_KEY"
SHORTEST = 16  # bytes


class UserHash:
    """Hash user ids and histories; `fingerprint` identifies the key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.fingerprint = self._digest(b"\0fingerprint of the key")[:12]

    def __call__(self, user: int | str) -> str:
        """Return 32 hexadecimal digits; `7` and `"7"` are the same user."""
        return self._digest(str(user).encode())[:32]

    def of_history(self, items: Sequence[int | str], fields: Mapping[str, object] | None = None) -> str:
        """Return 16 hexadecimal digits of a history and other fields."""
        rest = json.dumps(fields) if fields else ""
        return self._digest(b"\0history" + json.dumps([str(item) for item in items]).encode() + rest.encode())[:16]

    def _digest(self, content: bytes) -> str:
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()


def read_key(file: Path | None) -> UserHash:
    """Read the key from a file, created if missing, or the environment, else make one; UserError if short or unsafe."""
    if file is None:
        given = os.environ.get(VARIABLE)
        if given is not None and len(given.encode()) < SHORTEST:
            raise UserError(f"{VARIABLE}: {len(given.encode())} bytes; a key has at least {SHORTEST}")
        return UserHash(given.encode() if given is not None else secrets.token_bytes(32))
    if not os.path.lexists(file):
        _make_key(file)
    try:
        mode, key = file.stat().st_mode, file.read_bytes().strip()
    except OSError as error:
        raise UserError(f"--user-key-file {file}: {error.strerror}") from error
    if mode & 0o077:
        raise UserError(f"--user-key-file {file}: others may read it (mode {mode & 0o777:o}); chmod 600 it")
    if len(key) < SHORTEST:
        raise UserError(f"--user-key-file {file}: {len(key)} bytes; a key has at least {SHORTEST}")
    return UserHash(key)


def _make_key(file: Path) -> None:
    """Write a new key; no process reads it empty."""
    work = temporary(file)
    try:
        with os.fdopen(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as made:
            made.write(secrets.token_hex(32) + "\n")
            made.flush()
            os.fsync(made.fileno())
        with suppress(FileExistsError):
            os.link(work, file)
        sync_folder(file.parent)
    except OSError as error:
        what = f"{error.strerror}; give a file in a folder that can be written"
        raise UserError(f"--user-key-file {file}: {what}") from error
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)
