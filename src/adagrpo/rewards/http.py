"""A batched HTTP endpoint as a reward.

    POST url   {"histories": [["a", "b"], ["c"]], "candidates": [["d", "e"], ["f"]]}
    200        {"scores": [[0.3, 0.1], [2.5]]}

Histories are oldest first. Connection errors, time-outs and statuses 408, 429 and 5xx are retried after a pause that
doubles, or after Retry-After, which holds back all other requests too. Any other status and an invalid response end the
scoring. Redirects and proxies are not used.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.errors import ServiceError, UserError
from adagrpo.rewards.external import (
    InvalidResponse,
    ItemId,
    ScoreRequest,
    check_response,
    scatter_scores,
    score_request,
)
from adagrpo.types import Histories

AGAIN = {408, 429}  # and all from 500 on
LONGEST_PAUSE = 30.0  # seconds
READ_BYTES = 2**16  # bytes read between two looks at the clock


class _TryAgain(Exception):
    """A transient failure."""

    def __init__(self, problem: str, after: float | None = None) -> None:
        super().__init__(problem)
        self.after = after  # seconds, if the service asked for a pause


class HttpReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        url: str,
        ids: Sequence[ItemId],
        *,
        batch_size: int = 64,
        concurrency: int = 4,
        timeout_seconds: float = 10.0,
        retries: int = 4,
        backoff_seconds: float = 0.5,
        token_env: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Configure an endpoint; nothing is sent yet.

        Args:
            batch_size: histories per request.
            timeout_seconds: from the connection to the last byte of the response.
            backoff_seconds: the first pause; each is twice the one before, up to 30 seconds.
            token_env: environment variable with a bearer token.

        Raises:
            UserError: the variable is not set.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be http:// or https://, got {url}")
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if token_env is not None:
            token = os.environ.get(token_env)
            if not token:
                raise UserError(f"reward.token_env: the environment variable {token_env} is not set")
            self._headers["Authorization"] = f"Bearer {token}"
        self.ids, self.batch_size, self.concurrency = ids, batch_size, concurrency
        self.timeout, self.retries, self.backoff, self.sleep = timeout_seconds, retries, backoff_seconds, sleep
        self._resume_at = 0.0  # on the monotonic clock; of whichever request was told to wait longest

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`.

        Raises:
            ServiceError: the endpoint failed for good, or its response is invalid.
        """
        whole = score_request(histories, items, self.ids)
        size = self.batch_size
        starts = range(0, len(whole.candidates), size)
        batches = [ScoreRequest(whole.histories[at : at + size], whole.candidates[at : at + size]) for at in starts]
        if len(batches) == 1:  # as of a service, whose end would wait for the threads of a pool
            return scatter_scores(self._batch(batches[0]), items)
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            scores = [rows for part in pool.map(self._batch, batches) for rows in part]
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure what has not been sent is not sent any more
        return scatter_scores(scores, items)

    def _batch(self, request: ScoreRequest) -> list[NDArray[np.float32]]:
        body = json.dumps(request._asdict()).encode()
        limit = 2**16 + 64 * sum(map(len, request.candidates))  # bytes: far more than any number needs
        for attempt in range(self.retries + 1):
            if (left := self._resume_at - time.monotonic()) > 0:
                self.sleep(left)
            try:
                return self._read(self._send(body, limit), request)
            except _TryAgain as error:
                problem = str(error)
                if attempt < self.retries:
                    self._pause(error.after, attempt)
        raise self._failed(f"{problem}, in {self.retries + 1} attempts")

    def _pause(self, asked: float | None, attempt: int) -> None:
        if asked is None:
            self.sleep(min(self.backoff * 2**attempt, LONGEST_PAUSE))
        else:  # for all: the next request waits
            self._resume_at = max(self._resume_at, time.monotonic() + min(asked, LONGEST_PAUSE))

    def _send(self, body: bytes, limit: int) -> bytes:
        deadline = time.monotonic() + self.timeout
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self.timeout)
        try:
            connection.request("POST", self._target, body, self._headers)
            response = connection.getresponse()
            if response.status in AGAIN or response.status >= 500:
                after = (response.headers.get("Retry-After") or "").strip()
                raise _TryAgain(f"answered status {response.status}", float(after) if after.isdecimal() else None)
            if response.status != 200:
                moved = "; redirects are not followed" if 300 <= response.status < 400 else ""
                raise self._failed(f"answered status {response.status}{moved}")
            chunks: list[bytes] = []
            while chunk := response.read1(READ_BYTES):
                chunks.append(chunk)
                limit -= len(chunk)
                if limit < 0:
                    raise self._failed("answered far more than the scores it was asked for")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if connection.sock is not None:
                    connection.sock.settimeout(left)
            if response.length:  # closed before all of the announced length had come
                raise http.client.IncompleteRead(b"", response.length)
            return b"".join(chunks)
        except TimeoutError as error:
            raise _TryAgain(f"gave no answer in {self.timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(f"could not be asked ({type(error).__name__}: {error})") from error
        finally:
            connection.close()

    def _read(self, content: bytes, request: ScoreRequest) -> list[NDArray[np.float32]]:
        try:
            response: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._failed(f"answered what is not JSON ({error})") from error
        if not isinstance(response, dict) or "scores" not in response:
            raise self._failed('answered no object with "scores"')
        try:
            return check_response(response["scores"], request.candidates)
        except InvalidResponse as error:
            raise self._failed(str(error)) from error

    def _failed(self, problem: str) -> ServiceError:
        return ServiceError(f"reward {self.name}: {problem}; fix it, and the same command continues")
