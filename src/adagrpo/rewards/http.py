"""A batched HTTP endpoint as a reward.

    POST url   {"histories": [["a", "b"], ["c"]], "candidates": [["d", "e"], ["f"]]}
    200        {"scores": [[0.3, 0.1], [2.5]]}

Histories are oldest first. Connection errors, answers that are late as a whole and statuses 408, 429 and 5xx are
retried, after what Retry-After says or a pause that doubles. Any other status, and an answer that is invalid or larger
than its scores can be, end the scoring. Redirects and proxies are not used.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Thread
from typing import Any

import numpy as np
import urllib3
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.errors import ServiceError, UserError
from adagrpo.rewards.external import (
    InvalidResponse,
    ScoreRequest,
    check_response,
    scatter_scores,
    score_request,
)
from adagrpo.types import Histories, ItemId

AGAIN = (408, 429, *range(500, 600))
LONGEST_PAUSE = 30  # seconds
LARGEST_ANSWER, LARGEST_SCORE = 2**20, 64  # bytes: of an answer without scores, and that each score adds
BLOCK = 2**16  # bytes that are read at a time


class _Late(Exception):
    """The answer was not complete in time."""


class HttpReward:
    """Implements `adagrpo.rewards.protocol.Reward`."""

    def __init__(
        self,
        url: str,
        ids: Sequence[ItemId],
        *,
        batch_size: int = 64,  # histories per request
        concurrency: int = 4,
        timeout_seconds: float = 10.0,  # until an answer is complete, from the first byte sent; for each try
        retries: int = 4,
        backoff_seconds: float = 0.5,  # before the second retry; each pause is twice the one before, up to 30 seconds
        token_env: str | None = None,  # environment variable with a bearer token
        say: Callable[[str], None] = lambda line: None,  # gets a line for each answer that is late
    ) -> None:
        """Configure an endpoint; nothing is sent yet. UserError if the variable `token_env` is not set."""
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must be http:// or https://, got {url}")
        self.url, self.name = url, url.partition("?")[0]
        headers = {"Accept": "application/json"}
        if token_env is not None:
            token = os.environ.get(token_env)
            if not token:
                raise UserError(f"reward.token_env: the environment variable {token_env} is not set")
            headers["Authorization"] = f"Bearer {token}"
        self.ids, self.batch_size, self.concurrency = ids, batch_size, concurrency
        self.timeout, self.attempts, self._say = timeout_seconds, retries + 1, say
        self._retry = urllib3.Retry(
            retries,
            allowed_methods=None,  # any, also POST
            status_forcelist=AGAIN,
            backoff_factor=backoff_seconds / 2,  # urllib3 doubles it before the first pause
            backoff_max=LONGEST_PAUSE,
            retry_after_max=LONGEST_PAUSE,
        )
        self.http = urllib3.PoolManager(headers=headers, timeout=timeout_seconds, maxsize=concurrency)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`; ServiceError if the endpoint failed, or its response is invalid."""
        whole = score_request(histories, items, self.ids)
        parts = [slice(at, at + self.batch_size) for at in range(0, len(whole.candidates), self.batch_size)]
        batches = [ScoreRequest(whole.histories[part], whole.candidates[part]) for part in parts]
        if len(batches) == 1:  # as of a service, whose end would wait for the threads of a pool
            return scatter_scores(self._batch(batches[0]), items)
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            scores = [rows for part in pool.map(self._batch, batches) for rows in part]
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure what has not been sent is not sent any more
        return scatter_scores(scores, items)

    def _batch(self, request: ScoreRequest) -> list[NDArray[np.float32]]:
        retry = self._retry
        while True:
            status, late = 0, False
            failed: Exception | None = None
            try:
                status, headers, content = self._ask(request)
                if status not in AGAIN:
                    return self._read(status, content, request)
            except InvalidResponse as error:
                raise self._error(str(error)) from error
            except (_Late, urllib3.exceptions.ReadTimeoutError) as error:
                late, failed = True, error
                self._say(f"note: reward {self.name}: gave no answer in {self.timeout:g} seconds")
            except urllib3.exceptions.HTTPError as error:
                failed = error
            try:
                retry = retry.increment()
            except urllib3.exceptions.MaxRetryError:
                what = f"answered status {status}" if failed is None else f"could not be asked ({failed})"
                what = f"gave no answer in {self.timeout:g} seconds" if late else what
                raise self._error(f"{what}, in {self.attempts} attempts") from failed
            retry.sleep(urllib3.HTTPResponse(headers=headers) if status else None)

    def _ask(self, request: ScoreRequest) -> tuple[int, Any, bytes]:
        """In a thread: no timeout of a socket bounds an answer that comes byte by byte."""
        answer, deadline = Future[tuple[int, Any, bytes]](), time.monotonic() + self.timeout

        def receive() -> None:
            try:
                answer.set_result(self._receive(request, deadline))
            except Exception as error:
                answer.set_exception(error)

        Thread(target=receive, name="reward-request", daemon=True).start()
        if not wait([answer], self.timeout).done:
            raise _Late
        return answer.result()

    def _receive(self, request: ScoreRequest, deadline: float) -> tuple[int, Any, bytes]:
        most = LARGEST_ANSWER + LARGEST_SCORE * sum(map(len, request.candidates))
        response = self.http.request(
            "POST", self.url, json=request._asdict(), redirect=False, retries=False, preload_content=False
        )
        content = bytearray()
        try:
            while block := response.read1(BLOCK):
                content += block
                if len(content) > most:
                    raise InvalidResponse(f"answered more than {most:,} bytes")
                if time.monotonic() > deadline:
                    raise _Late
        except BaseException:
            response.close()  # what is left of the answer is not read
            raise
        response.release_conn()
        return response.status, response.headers, bytes(content)

    def _read(self, status: int, content: bytes, request: ScoreRequest) -> list[NDArray[np.float32]]:
        if status != 200:
            moved = "; redirects are not followed" if 300 <= status < 400 else ""
            raise InvalidResponse(f"answered status {status}{moved}")
        try:
            answer: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InvalidResponse(f"answered what is not JSON ({error})") from error
        if not isinstance(answer, dict) or "scores" not in answer:
            raise InvalidResponse('answered no object with "scores"')
        return check_response(answer["scores"], request.candidates)

    def _error(self, problem: str) -> ServiceError:
        return ServiceError(f"reward {self.name}: {problem}; fix it, and the same command continues")
