"""A batched HTTP endpoint as a reward.

    POST url   {"histories": [["a", "b"], ["c"]], "candidates": [["d", "e"], ["f"]]}
    200        {"scores": [[0.3, 0.1], [2.5]]}

Histories are oldest first. Connection errors, time-outs and statuses 408, 429 and 5xx are retried, after what
Retry-After says or a pause that doubles. Any other status and an invalid response end the scoring. Redirects and
proxies are not used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import urllib3
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

AGAIN = (408, 429, *range(500, 600))
LONGEST_PAUSE = 30  # seconds


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
    ) -> None:
        """Configure an endpoint; nothing is sent yet.

        Args:
            batch_size: histories per request.
            timeout_seconds: to connect, and between two reads of the response.
            backoff_seconds: the pause before the second retry; each is twice the one before, up to 30 seconds.
            token_env: environment variable with a bearer token.

        Raises:
            UserError: the variable is not set.
        """
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
        self.timeout, self.attempts = timeout_seconds, retries + 1
        again = urllib3.Retry(
            retries,
            allowed_methods=None,  # any, also POST
            status_forcelist=AGAIN,
            raise_on_status=False,
            backoff_factor=backoff_seconds / 2,  # urllib3 doubles it before the first pause
            backoff_max=LONGEST_PAUSE,
            retry_after_max=LONGEST_PAUSE,
        )
        self.http = urllib3.PoolManager(headers=headers, timeout=timeout_seconds, retries=again, maxsize=concurrency)

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score (B, N) items, see `Reward.score`.

        Raises:
            ServiceError: the endpoint failed for good, or its response is invalid.
        """
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
        try:
            response = self.http.request("POST", self.url, json=request._asdict(), redirect=False)
            if response.status != 200:
                tried = f", in {self.attempts} attempts" if response.status in AGAIN else ""
                moved = "; redirects are not followed" if 300 <= response.status < 400 else ""
                raise InvalidResponse(f"answered status {response.status}{tried}{moved}")
            answer: Any = json.loads(response.data)
            if not isinstance(answer, dict) or "scores" not in answer:
                raise InvalidResponse('answered no object with "scores"')
            return check_response(answer["scores"], request.candidates)
        except InvalidResponse as error:
            problem = str(error)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", error)
            late = isinstance(reason, urllib3.exceptions.ReadTimeoutError)
            what = f"gave no answer in {self.timeout:g} seconds" if late else f"could not be asked ({reason})"
            problem = f"{what}, in {self.attempts} attempts"
        except (ValueError, RecursionError) as error:
            problem = f"answered what is not JSON ({error})"
        raise ServiceError(f"reward {self.name}: {problem}; fix it, and the same command continues")
