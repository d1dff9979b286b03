"""What each route answers. Bodies come read and bounded from `adagrpo.serving.intake`; everything said back is JSON.

Handlers take the request alone: what a body may hold is validated by its schema in one call, and answers are written
by orjson, since checks of every value on the way out would cost as much as the list.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request, Response

from adagrpo.serving.limits import LONGEST_BATCH
from adagrpo.serving.recommender import ItemId, Query
from adagrpo.serving.schemas import (
    BadRequest,
    BatchBody,
    FeedbackBody,
    FeedbackEvent,
    RecommendBody,
    RecommendRequest,
    ReloadBody,
    parsed,
    validated,
)
from adagrpo.serving.served import Answered, Asked, Serving, Shelf, SwapFailed
from adagrpo.serving.service_metrics import MEDIA_TYPE, ServiceMetrics
from adagrpo.serving.user_hash import UserHash
from adagrpo.serving.waiting_line import TooLate, WaitingLine

__all__ = ["Routes", "answered", "json_response"]

DEFECT = "a defect of the service; it was logged"
Handler = Callable[[Request], Awaitable[Response]]


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Content as JSON."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def answered(handler: Handler) -> Handler:
    """A handler whose refusals are answers."""

    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except BadRequest as error:
            return json_response({"detail": str(error)}, error.status)
        except TooLate as error:
            again = {"retry-after": str(error.retry_after)}
            return json_response({"detail": str(error)}, 503, again)
        except asyncio.CancelledError:
            if _left(request):  # nobody reads it
                return Response(status_code=499)
            raise
        except Exception as error:
            request.state.defect = error  # counted and logged where all requests are
            return json_response({"detail": DEFECT}, 500)

    wrapped.__doc__, wrapped.__name__ = handler.__doc__, handler.__name__
    return wrapped


@dataclass
class Routes:
    """The handlers, and what they share."""

    shelf: Shelf
    line: WaitingLine[Asked, Answered]
    metrics: ServiceMetrics
    user_hash: UserHash
    ready: Callable[[], bool]
    may_reload: bool  # a token is set
    parent: int | None = None  # process that reloads all workers

    async def health(self, request: Request) -> Response:
        """What is served."""
        return json_response({"status": "ok", **self.shelf.now.about})

    async def livez(self, request: Request) -> Response:
        """Whether the process answers at all."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether requests should be sent here."""
        ready = self.ready()
        return json_response({"status": "ok" if ready else "ending"}, 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Figures for Prometheus."""
        self.metrics.waiting.set(self.line.waiting)
        return Response(self.metrics.text(), media_type=MEDIA_TYPE)

    async def recommend(self, request: Request) -> Response:
        """A list for a history."""
        body = validated(RecommendRequest, parsed(request.state.body))
        serving = self.shelf.now
        asked, unknown = self._asked(serving, body)
        if not asked.query.history:
            raise BadRequest("history: none of its ids is in the catalogue")
        result = (await self._answers(request, [asked]))[0].list
        return json_response({"items": result.items[: body.k], "scores": result.scores[: body.k], "unknown": unknown})

    async def recommend_v1(self, request: Request) -> Response:
        """Lists for one history, or for several in one body."""
        content = parsed(request.state.body)
        batch = isinstance(content, dict) and "requests" in content
        bodies = validated(BatchBody, content).requests if batch else [validated(RecommendBody, content)]
        ids = [body.request_id or self._id(request, place) for place, body in enumerate(bodies)]
        if len({*ids}) != len(ids):
            raise BadRequest("requests: two of them have the same request_id")
        serving = self.shelf.now
        asked = [self._asked(serving, body) for body in bodies]
        answers = await self._answers(request, [one for one, _ in asked])
        replies = [
            _reply(serving, body, request_id, answer, unknown)
            for body, request_id, answer, (_, unknown) in zip(bodies, ids, answers, asked, strict=True)
        ]
        self._note(request, bodies, ids, replies)
        return json_response({"responses": replies} if batch else replies[0])

    async def item(self, request: Request) -> Response:
        """An item of the catalogue."""
        serving = self.shelf.now
        found, _ = serving.recommender.known([request.path_params["item_id"][:1000]])
        if not found:
            raise BadRequest("no such item", 404)
        codes = serving.recommender.catalog.codes[found[0]].tolist()
        name = serving.recommender.item_ids[found[0]]
        return json_response({"item_id": name, "codes": codes, "catalog": serving.versions["catalog"]})

    async def feedback(self, request: Request) -> Response:
        """Take what users did with lists."""
        content = parsed(request.state.body)
        many = isinstance(content, dict) and "events" in content
        events = validated(FeedbackBody, content).events if many else [validated(FeedbackEvent, content)]
        raise BadRequest(f"feedback: there is no exposure log for {len(events)} events; serve with --exposures", 409)

    async def reload(self, request: Request) -> Response:
        """Serve another checkpoint, or what is in the run now. A failure leaves what is served as it is."""
        if not self.may_reload:
            raise BadRequest("only where a token is set", 403)
        body = validated(ReloadBody, parsed(request.state.body or b"{}"))
        wanted = body.model_dump(exclude_none=True)
        if self.parent is not None:
            if wanted:
                raise BadRequest("several workers reload what was asked for at the start; send {}", 409)
            os.kill(self.parent, signal.SIGHUP)
            return json_response({"status": "all workers were told to reload"}, 202)
        try:
            serving = await asyncio.to_thread(self.shelf.swap, **wanted)
        except SwapFailed as error:
            self.metrics.swaps.labels("failed").inc()
            raise BadRequest(f"kept what was served: {error}", 409) from error
        self.metrics.swaps.labels("done").inc()
        self.metrics.serves(**serving.versions)
        return json_response({"status": "ok", "versions": serving.versions, **serving.about})

    # ------------------------------------------------ parts of them

    def _asked(self, serving: Serving, body: RecommendRequest | RecommendBody) -> tuple[Asked, list[ItemId]]:
        """A request in items of the catalogue, and the ids that are not in it."""
        recommender = serving.recommender
        if body.k > recommender.width:
            raise BadRequest(f"k: more than the beam holds, {recommender.width}")
        history, unknown = recommender.known(body.history)
        without = recommender.known(body.exclude)[0] if isinstance(body, RecommendBody) and body.exclude else []
        return Asked(serving, Query(history, body.exclude_history, without)), unknown

    async def _answers(self, request: Request, asked: Sequence[Asked]) -> list[Answered]:
        """What the policy answers, in time.

        Raises:
            TooLate: it would not.
        """
        deadline = request.state.deadline
        self.line.check(deadline - time.monotonic(), len(asked))
        futures = [self.line.submit(one, deadline, lambda: _left(request)) for one in asked]
        answers = [await futures[0]] if len(futures) == 1 else list(await asyncio.gather(*futures))
        for answer in answers:
            self.metrics.length.observe(len(answer.list.items))
            if (
                not answer.reranked
                and answer.list.source != "popular"
                and asked[0].serving.recommender.reward is not None
            ):
                self.metrics.fallbacks.inc()
        return answers

    def _id(self, request: Request, place: int) -> str:
        """A request id for the answer at a place, in a body of at most LONGEST_BATCH."""
        name: str = request.state.request_id
        return name if not place else f"{name}.{place % LONGEST_BATCH}"

    def _note(
        self,
        request: Request,
        bodies: Sequence[RecommendBody],
        ids: Sequence[str],
        replies: Sequence[Mapping[str, Any]],
    ) -> None:
        """What the log of requests says beside route and status; no id of a user or an item."""
        fields = request.state.log
        fields |= {"request_id": ids[0], "lists": len(bodies), "versions": replies[0]["versions"]}
        users = [body.user_id for body in bodies if body.user_id is not None]
        if users:
            fields["user"] = self.user_hash(users[0])


def _left(request: Request) -> bool:
    """Whether nobody waits for the answer any more, as far as the server says."""
    cycle = getattr(request.state, "cycle", None)  # of `adagrpo.serving.connections`
    return cycle is not None and cycle.disconnected


def _reply(
    serving: Serving, body: RecommendBody, request_id: str, answer: Answered, unknown: list[ItemId]
) -> dict[str, Any]:
    shown = answer.list
    return {
        "request_id": request_id,
        "items": shown.items[: body.k],
        "scores": shown.scores[: body.k],
        "codes": shown.codes[: body.k],
        "source": shown.source,
        "reranked": answer.reranked,
        "unknown": unknown,
        "versions": serving.versions,
    }
