"""What a service bounds: sizes, counts and times. Nothing that a client sends or leaves undone goes beyond them."""

from __future__ import annotations

import resource
from dataclasses import dataclass

__all__ = ["LONGEST_BATCH", "LONGEST_HISTORY", "Limits", "most_connections"]

LONGEST_HISTORY = 10_000  # ids that a request may hold
LONGEST_BATCH = 64  # requests that one body may hold
SPARE_FILES = 256  # descriptors kept for everything but clients


@dataclass(frozen=True)
class Limits:
    """Bounds of one process that answers."""

    body_bytes: int = 1_000_000
    head_bytes: int = 32_768  # request line and headers
    head_seconds: float = 10.0  # from the first byte of a request to the end of its headers
    body_seconds: float = 10.0  # from there to the last byte of its body
    idle_seconds: float = 30.0  # a connection on which nothing is asked
    write_seconds: float = 10.0  # a client that does not read its answer
    linger_seconds: float = 1.0  # what a refused client still sends is read and dropped, so that it sees the answer
    connections: int = 1000
    waiting: int = 1024  # requests that wait for the policy
    deadline_seconds: float = 2.0  # of a request that names none
    grace_seconds: float = 0.5  # between readiness turning 503 and the last connection taken
    drain_seconds: float = 10.0  # for what was accepted by then


def most_connections(wanted: int) -> int:
    """Raise the process's limit of open files as far as it may, and say how many connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard and soft < wanted + SPARE_FILES:
        soft = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + SPARE_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - SPARE_FILES))
