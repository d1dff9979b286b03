"""Bearer tokens, read from a file or the environment, never from the command line."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from adagrpo.errors import UserError

VARIABLE = "ADAGRPO_TOKENS"
SHORTEST = 16  # characters
LOCAL = ("127.0.0.1", "::1", "localhost")


class Bearers:
    """Tokens of a service; without any, all requests are admitted."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: bytes | None) -> bool:
        """Return whether an `Authorization` header holds a token, in constant time."""
        if not self._digests:
            return True
        scheme, _, given = (authorization or b"").partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()
        known = [hmac.compare_digest(digest, digest_of_token) for digest_of_token in self._digests]
        return scheme.lower() == b"bearer" and any(known)


def read_tokens(file: Path | None) -> Bearers:
    """Read tokens from a file, one per line, or the environment, separated by commas or white space.

    Raises:
        UserError: unreadable file, no token, or a short one.
    """
    if file is None:
        where, tokens = VARIABLE, os.environ.get(VARIABLE, "").replace(",", " ").split()
    else:
        where = f"--token-file {file}"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{where}: {getattr(error, 'strerror', None) or 'not UTF-8'}; give one token a line"
            ) from error
        tokens = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not tokens:
            raise UserError(f"{where}: holds no token; put one on each line")
    for place, token in enumerate(tokens, 1):
        if len(token) < SHORTEST or any(c.isspace() or not c.isprintable() for c in token):
            raise UserError(
                f"{where}: token {place} has {len(token)} characters; a token has at least {SHORTEST} printable ones"
                " and no space, such as `openssl rand -hex 32` prints"
            )
    return Bearers(tokens)


def check_exposed(host: str, bearers: Bearers, without_token: bool) -> None:
    """Refuse a public address without tokens.

    Raises:
        UserError: unless `without_token` is set.
    """
    if host not in LOCAL and not bearers and not without_token:
        raise UserError(
            f"--host {host}: others can reach it, and no token is set; give --token-file or {VARIABLE},"
            " or say --without-token"
        )
