"""Limits of a service: sizes, counts and times."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_HISTORY = 10_000  # ids per request
LONGEST_BATCH = 64  # requests per body
MOST_VALUES = 32_000  # per body: one request with all its lists full, or 64 with 500 values each
HEAD_BYTES = 32_768  # of a request outside its body: head, trailers, chunk extensions


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
