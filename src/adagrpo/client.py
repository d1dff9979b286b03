"""Client of a service of `adagrpo serve`, for threads and for an event loop.

Example:
    from adagrpo.client import Client

    with Client("http://127.0.0.1:8000") as client:
        answer = client.recommend(["B00063RWUM"], k=5, user_id="u1")
        client.click(answer.request_id, answer.items[0])

Failed connections, time-outs and the statuses 408, 429, 502, 503 and 504 are retried, after what Retry-After says or a
pause that doubles. Each request has an id and each event a time before the first attempt, so that a repeated request
gets the logged list, where there is an exposure log, and a repeated event counts once.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypedDict, TypeVar, Unpack

import urllib3
from pydantic import BaseModel

from adagrpo.errors import ServiceError
from adagrpo.serving.schemas import (
    LONGEST_BATCH,
    BadRequest,
    BatchAnswer,
    FeedbackAnswer,
    FeedbackBody,
    FeedbackEvent,
    HealthAnswer,
    RecommendAnswer,
    RecommendBody,
    validated,
)
from adagrpo.types import ItemId

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Client",
    "FeedbackEvent",
    "Query",
    "RecommendAnswer",
    "RecommendBody",
    "Refused",
]

AGAIN = (408, 429, 502, 503, 504)
LONGEST_PAUSE = 5  # seconds
Filter = list[ItemId] | dict[str, Any]
AnswerT = TypeVar("AnswerT", bound=BaseModel)
T = TypeVar("T")


class Query(TypedDict, total=False):
    """Fields of a request besides its history, see docs/how-to/serve.md."""

    k: int
    exclude_history: bool
    times: Sequence[float]
    now: float
    shown: Sequence[ItemId]
    shown_times: Sequence[float]
    include: Filter
    exclude: Filter
    user_id: ItemId
    request_id: str
    explain: bool


class Refused(ServiceError):
    """The service refused a request; `status` is that of HTTP."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"status {status}: {detail}")
        self.status = status


class Client:
    """A client with a pool of connections, which threads may share."""

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 5.0, retries: int = 2, connections: int = 16
    ) -> None:
        """Connect with the first request.

        `timeout` is of each attempt: seconds to connect, and between two reads of an answer. `retries` come after it.
        """
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        again = urllib3.Retry(
            retries,
            allowed_methods=None,  # any, also POST
            status_forcelist=AGAIN,
            raise_on_status=False,
            backoff_factor=0.1,
            backoff_max=LONGEST_PAUSE,
            retry_after_max=LONGEST_PAUSE,
        )
        self.url = url.rstrip("/")
        self._http = urllib3.PoolManager(
            headers=headers, timeout=timeout, retries=again, maxsize=connections, block=True
        )

    def recommend(self, history: Sequence[ItemId], **query: Unpack[Query]) -> RecommendAnswer:
        """Return the list for a history of item ids, oldest first.

        BadRequest if a field is not what it should be, before anything is sent; Refused by the service, with its
        reason; ServiceError if no answer came, or none of the service.
        """
        return self.recommend_all([validated(RecommendBody, {"history": list(history), **query})])[0]

    def recommend_all(self, requests: Sequence[RecommendBody]) -> list[RecommendAnswer]:
        """Return the lists of several requests, in their order; errors as in `recommend`."""
        named = [one if one.request_id else one.model_copy(update={"request_id": uuid.uuid4().hex}) for one in requests]
        answers: list[RecommendAnswer] = []
        for first in range(0, len(named), LONGEST_BATCH):
            part = [one.model_dump(exclude_unset=True) for one in named[first : first + LONGEST_BATCH]]
            answers += self._ask("/v1/recommend", BatchAnswer, {"requests": part}).responses
        return answers

    def click(self, request_id: str, item_id: ItemId) -> FeedbackAnswer:
        """Report a click on an item of a list."""
        return self.feedback([FeedbackEvent(request_id=request_id, item_id=item_id, kind="click")])

    def feedback(self, events: Sequence[FeedbackEvent]) -> FeedbackAnswer:
        """Report up to 1,000 events; those without a time are of now."""
        timed = [one if one.time is not None else one.model_copy(update={"time": time.time()}) for one in events]
        return self._ask("/v1/feedback", FeedbackAnswer, FeedbackBody(events=timed).model_dump(exclude_none=True))

    def health(self) -> HealthAnswer:
        """Return what is served, and its state."""
        return self._ask("/health", HealthAnswer)

    def close(self) -> None:
        """Close the connections."""
        self._http.clear()

    def _ask(self, path: str, kind: type[AnswerT], body: Any = None) -> AnswerT:
        try:
            response = self._http.request("GET" if body is None else "POST", self.url + path, json=body, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise ServiceError(f"{self.url}{path}: no answer ({getattr(error, 'reason', None) or error})") from error
        try:
            if response.status == 200:
                return kind.model_validate_json(response.data)
            detail = str(json.loads(response.data)["detail"])
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"{self.url}{path}: status {response.status}, no answer of adagrpo serve") from error
        raise Refused(response.status, detail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """The same for an event loop: at most `connections` requests at a time, each in a thread."""

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 5.0, retries: int = 2, connections: int = 16
    ) -> None:
        self.client = Client(url, token, timeout=timeout, retries=retries, connections=connections)
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="adagrpo-client")

    async def recommend(self, history: Sequence[ItemId], **query: Unpack[Query]) -> RecommendAnswer:
        """See `Client.recommend`."""
        return await self._run(partial(self.client.recommend, history, **query))

    async def recommend_all(self, requests: Sequence[RecommendBody]) -> list[RecommendAnswer]:
        """See `Client.recommend_all`."""
        return await self._run(partial(self.client.recommend_all, requests))

    async def click(self, request_id: str, item_id: ItemId) -> FeedbackAnswer:
        """See `Client.click`."""
        return await self._run(partial(self.client.click, request_id, item_id))

    async def feedback(self, events: Sequence[FeedbackEvent]) -> FeedbackAnswer:
        """See `Client.feedback`."""
        return await self._run(partial(self.client.feedback, events))

    async def health(self) -> HealthAnswer:
        """See `Client.health`."""
        return await self._run(self.client.health)

    async def close(self) -> None:
        """Close the connections, after the requests that are under way."""
        await asyncio.to_thread(self._threads.shutdown)
        self.client.close()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
