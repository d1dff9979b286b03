"""Request log: one line of JSON each, without user ids, histories, tokens or exception messages."""

from __future__ import annotations

import json
import random
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

MOST_A_SECOND = 20  # events logged, so that a flood does not fill the disk


class RequestLog:
    """Write log lines to a stream."""

    def __init__(self, share: float = 0.0, stream: TextIO | None = None) -> None:
        """Configure the log.

        Args:
            share: of requests logged, in [0, 1]; 5xx other than 503 always are.
            stream: None: standard error.
        """
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
