"""The log of requests: one line of JSON for each that is logged, without ids of users, histories or tokens.

Defects are logged by type and place. The message of an exception may hold what a client sent, so it is left out.
"""

from __future__ import annotations

import json
import random
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

MOST_A_SECOND = 20  # lines on defects; a flood of them must not fill a disk


class RequestLog:
    """Writes lines to a stream."""

    def __init__(self, share: float = 0.0, stream: TextIO | None = None) -> None:
        """Choose what is written.

        Args:
            share: of the requests; those that were answered 5xx are written whatever it is.
            stream: standard error if not given.
        """
        self.share, self._stream = share, stream
        self._second, self._lines = 0, 0

    def request(self, status: int, fields: Mapping[str, Any]) -> None:
        """Log a request, if its share says so."""
        if status >= 500 and status != 503:
            self.event("request", status=status, **fields)
        elif self.share and (self.share >= 1 or random.random() < self.share):
            self._write({"event": "request", "time": round(time.time(), 3), "status": status, **fields})

    def event(self, event: str, **fields: Any) -> None:
        """Log what is no request; of a flood only the first lines of each second are written."""
        now = time.time()
        if int(now) != self._second:
            self._second, self._lines = int(now), 0
        self._lines += 1
        if self._lines <= MOST_A_SECOND:
            self._write({"event": event, "time": round(now, 3), **fields})

    def defect(self, error: BaseException, **fields: Any) -> None:
        """Log an exception by its type and where it was raised."""
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
        self.event("defect", type=type(error).__name__, place=place, **fields)

    def _write(self, fields: Mapping[str, Any]) -> None:
        stream = self._stream or sys.stderr
        stream.write(json.dumps(fields, separators=(",", ":")) + "\n")
        stream.flush()
