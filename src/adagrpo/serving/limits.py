"""Bounds of a service: sizes, counts and times."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_HISTORY = 10_000  # ids that a request may hold
LONGEST_BATCH = 64  # requests that one body may hold
MOST_VALUES = 32_000  # that one body may hold: one request with all its lists full, or 64 with 500 values each
HEAD_BYTES = 32_768  # what a request may have beside its body: head, trailers, lines before chunks


@dataclass(frozen=True)
class Limits:
    """Bounds of a service. Those of connections are the proxy's."""

    body_bytes: int = 1_000_000
    body_seconds: float = 10.0  # from the head to the last byte of a body
    idle_seconds: int = 75  # an answered connection on which nothing is asked; the proxy closes it sooner
    waiting: int = 1024  # requests that wait for the policy
    deadline_seconds: float = 2.0  # of a request that names none
    grace_seconds: float = 0.5  # between readiness turning 503 and the last connection taken
    drain_seconds: float = 10.0  # for what was accepted by then
