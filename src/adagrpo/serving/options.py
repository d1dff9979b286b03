"""Options of a service: limits, bearer tokens, and the request log.

Tokens are read from a file or the environment, never from the command line. A line of the request log is JSON, without
user ids, histories, tokens or exception messages.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import ExposureSink
from adagrpo.exposures.user_hash import UserHash, read_key
from adagrpo.lists.exploration import Exploration

VARIABLE = "ADAGRPO_TOKENS"
SHORTEST = 16  # characters of a token
LOCAL = ("127.0.0.1", "::1", "localhost")
MOST_A_SECOND = 20  # events logged, so that a flood does not fill the disk


@dataclass(frozen=True)
class Limits:
    """Limits of a service; those on connections are set in the proxy."""

    body_bytes: int = 1_000_000
    body_seconds: float = 10.0  # from the head to the last byte of a body
    idle_seconds: int = 75  # keep-alive of an idle connection; the proxy closes it sooner
    waiting: int = 1024  # requests that wait for the policy
    deadline_seconds: float = 2.0  # to answer a request
    grace_seconds: float = 0.5  # from /readyz turning 503 to the last accepted connection
    drain_seconds: float = 10.0  # to answer what was accepted by then


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
    """Read tokens from a file, one per line, or the environment; `UserError` for none, or a short one."""
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
    for number, token in enumerate(tokens, 1):
        if len(token) < SHORTEST or any(c.isspace() or not c.isprintable() for c in token):
            raise UserError(
                f"{where}: token {number} has {len(token)} characters; a token has at least {SHORTEST} printable ones"
                " and no space, such as `openssl rand -hex 32` prints"
            )
    return Bearers(tokens)


def check_exposed(host: str, bearers: Bearers, without_token: bool) -> None:
    """Refuse a public address without tokens by `UserError`, unless `without_token` is set."""
    if host not in LOCAL and not bearers and not without_token:
        raise UserError(
            f"--host {host}: others can reach it, and no token is set; give --token-file or {VARIABLE},"
            " or say --without-token"
        )


class RequestLog:
    """Write log lines to a stream."""

    def __init__(self, share: float = 0.0, stream: TextIO | None = None) -> None:
        """Log a `share` of requests in [0, 1], and all 5xx but 503, to a stream or standard error."""
        self.share, self._stream = share, stream
        self._second, self._lines = 0, 0

    def request(self, status: int, fields: Mapping[str, Any]) -> None:
        """Log a request if it is sampled."""
        if status >= 500 and status != 503:
            self.event("request", status=status, **fields)
        elif self.share and (self.share >= 1 or random.random() < self.share):
            self._write({"event": "request", "time": round(time.time(), 3), "status": status, **fields})

    def event(self, event: str, **fields: Any) -> None:
        """Log an event, at most `MOST_A_SECOND` per second."""
        now = time.time()
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        self._lines += 1
        if self._lines <= MOST_A_SECOND:
            self._write({"event": event, "time": round(now, 3), **fields})

    def defect(self, error: BaseException, **fields: Any) -> None:
        """Log the type and source line of an exception."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
        self.event("defect", type=type(error).__name__, place=place, **fields)

    def _write(self, fields: Mapping[str, Any]) -> None:
        stream = self._stream or sys.stderr
        stream.write(json.dumps(fields, separators=(",", ":")) + "\n")
        stream.flush()


@dataclass
class Options:
    """Options of a service."""

    limits: Limits = field(default_factory=Limits)
    bearers: Bearers = field(default_factory=Bearers)
    log: RequestLog = field(default_factory=RequestLog)
    user_hash: UserHash = field(default_factory=lambda: read_key(None))
    exposures: ExposureSink | None = None  # None: no log
    explore: Exploration | None = None  # None: no sampling
    hosts: Sequence[str] = ("*",)  # accepted Host headers
    threads: int = 1  # that compute lists, each on one processor
