"""Route handlers. `adagrpo.serving.middleware` has read the bodies.

Answers are written by orjson: response validation would cost as much as the list.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import orjson
from fastapi import Request, Response

from adagrpo.data.groups import UnknownGroup
from adagrpo.errors import UserError
from adagrpo.exposures.exposure_log import FAILED, Exposure, Feedback, SinkFailed, same_request
from adagrpo.lists.eligibility import Filter, Narrowing, filter_key, why_short
from adagrpo.lists.explanation import reasons
from adagrpo.lists.query import Query, Recommendations
from adagrpo.serving import schemas
from adagrpo.serving.batch_queue import BatchQueue, Overloaded, in_daemon_thread
from adagrpo.serving.exposure_rows import ExposureRows, RequestHashes, exposure
from adagrpo.serving.model_manager import Answered, Asked, Interleaved, ModelManager, Serving, SwapFailed
from adagrpo.serving.options import Options
from adagrpo.serving.schemas import LONGEST_BATCH, BadRequest, RecommendBody, parsed, validated
from adagrpo.serving.service_metrics import MEDIA_TYPE, ServiceMetrics
from adagrpo.types import ItemId

FIGURES_SECONDS = 1.0  # cache time of /metrics, whose rendering blocks the event loop
BYTES_IN_LOOP = 8192  # of a body; longer ones are read in a thread
DAY = 86_400.0  # seconds
IDS_IN_LOOP = 256  # ids of a filter; longer ones and groups are resolved in a thread
Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=schemas.Body)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return content as a JSON response."""
    return Response(orjson.dumps(content), status, headers, "application/json")


def answered(handler: Handler) -> Handler:
    """Wrap a handler so that its refusals become responses."""

    async def wrapped(request: Request) -> Response:
        try:
            return await handler(request)
        except BadRequest as error:
            return json_response({"detail": str(error)}, error.status)
        except Overloaded as error:
            request.state.turned_away = "queue"  # counted by the middleware
            return json_response({"detail": str(error)}, 503, {"retry-after": str(error.retry_after)})
        except SinkFailed:
            why = "the exposure log cannot be written; try again later"
            return json_response({"detail": why}, 503, {"retry-after": "1"})
        except asyncio.CancelledError:
            if disconnected(request):  # nobody reads the answer
                return Response(status_code=499)
            raise
        except Exception as error:
            request.state.defect = error  # counted and logged by the middleware
            return json_response({"detail": "a defect of the service; it was logged"}, 500)

    wrapped.__doc__, wrapped.__name__ = handler.__doc__, handler.__name__
    return wrapped


class _ListRequest(NamedTuple):
    id: str
    k: int
    hashes: RequestHashes
    asked: Asked
    unknown: list[ItemId]  # ids of its history that are not in the catalogue
    narrowing: Narrowing | None = None
    interleaved: Interleaved | None = None
    explain: bool = False


@dataclass
class Routes:
    """Route handlers and their shared state."""

    manager: ModelManager
    queue: BatchQueue[Asked, Answered]
    metrics: ServiceMetrics
    options: Options
    ready: Callable[[], bool]
    exposures: ExposureRows | None
    connections: Callable[[], int] = lambda: 0
    experiment: Callable[[], dict[str, Any]] | None = None  # updates its metrics and returns its state
    _figures: tuple[float, bytes] = (-math.inf, b"")  # time of rendering, and the text
    _large: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while a large body is read
    _explaining: asyncio.Lock = field(default_factory=asyncio.Lock)  # one at a time, beside the lists

    async def health(self, request: Request) -> Response:
        """Report the served model and its state."""
        trial = {} if self.experiment is None else {"experiment": self.experiment()}
        why = self.manager.degraded
        state = {"status": "ok"} if why is None else {"status": "degraded", "degraded": why}
        unwritten = None if self.exposures is None else self.exposures.failing
        if unwritten is not None:
            state |= {"status": "failing", "exposure_log": unwritten}
        return json_response({**state, **self.manager.now.about, **trial})

    async def livez(self, request: Request) -> Response:
        """Report that the process is alive."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Report whether requests should be sent here."""
        ready = self.ready()
        return json_response({"status": "ok" if ready else "ending"}, 200 if ready else 503)

    async def metrics_text(self, request: Request) -> Response:
        """Return metrics for Prometheus."""
        made, text = self._figures
        if time.monotonic() - made > FIGURES_SECONDS:
            self.metrics.waiting.set(self.queue.waiting)
            self.metrics.connections.set(self.connections())
            if self.experiment is not None:
                self.experiment()
            text = self.metrics.text()
            self._figures = (time.monotonic(), text)
        return Response(text, media_type=MEDIA_TYPE)

    async def recommend(self, request: Request) -> Response:
        """Return a list for a history."""
        one = await self._read(request, self._asked_plainly, request)
        answers = await self._lists(request, [one])
        reply = _reply(one, answers[0])
        await self._record(request, [one], answers, [reply])
        content = {key: reply[key] for key in ("items", "scores", "unknown")}
        content |= {} if reply["degraded"] is None else {"degraded": reply["degraded"]}
        return json_response(content, headers={"x-request-id": one.id})

    async def recommend_v1(self, request: Request) -> Response:
        """Return lists for one history, or for several in one body."""
        batch, bodies = await self._read(request, _bodies, request, RecommendBody, schemas.BatchBody, "requests")
        takes_time = any(
            body.include is not None
            or (body.exclude is not None and not (isinstance(body.exclude, list) and len(body.exclude) <= IDS_IN_LOOP))
            for body in bodies
        )
        if takes_time and len(request.state.body) <= BYTES_IN_LOOP:
            ones = await asyncio.to_thread(self._asked, request, bodies)
        else:
            ones = await self._read(request, self._asked, request, bodies)
        del bodies  # may be large; free them while waiting
        try:
            answers = await self._lists(request, ones)
        except Exception:  # these users got no list of their arm
            ms = 1000 * (time.perf_counter() - request.state.started)
            nothing = Answered(Recommendations([], [], []), False)
            rows = [  # under other ids, for a retry
                replace(exposure(f"{one.id}!{FAILED}", one.hashes, one.asked, nothing, ms), source=FAILED)
                for one in ones
                if one.asked.trial is not None
            ]
            if self.exposures is not None and rows:
                with suppress(SinkFailed):  # the client gets the first error
                    await self.exposures.write(rows)
            raise
        replies = [_reply(one, answer) for one, answer in zip(ones, answers, strict=True)]
        await self._record(request, ones, answers, replies)
        for one, reply in zip(ones, replies, strict=True):
            if one.explain:
                reply["reasons"] = await self._reasons(request, one, reply)
        return json_response({"responses": replies} if batch else replies[0], headers={"x-request-id": ones[0].id})

    async def item(self, request: Request) -> Response:
        """Return an item of the catalogue."""
        serving = self.manager.now
        found, _ = serving.recommender.known([request.path_params["item_id"][:1000]])
        if not found:
            raise BadRequest("no such item", 404)
        catalog = serving.recommender.catalog
        codes, listed = catalog.codes[found[0]].tolist(), bool(catalog.listed[found[0]])
        about = {"item_id": serving.recommender.item_ids[found[0]], "codes": codes, "listed": listed}
        return json_response({**about, "catalog": serving.versions["catalog"]})

    async def feedback(self, request: Request) -> Response:
        """Record feedback of users on lists."""

        def read() -> list[Feedback]:
            now = time.time()
            events = _bodies(request, schemas.FeedbackEvent, schemas.FeedbackBody, "events")[1]
            return [
                Feedback(
                    request_id=one.request_id,
                    item=one.item_id,
                    kind=one.kind,
                    time=now if one.time is None else one.time,
                    value=1.0 if one.value is None else one.value,
                )
                for one in events
            ]

        rows = await self._read(request, read)
        if self.exposures is None:
            raise BadRequest("there is no exposure log that would take it; serve with --exposures", 409)
        outcomes = Counter(await self.exposures.feedback(rows))
        for kind, count in Counter(row.kind for row in rows).items():
            self.metrics.feedback.labels(kind).inc(count)
        repeated, unknown = outcomes["repeated"], outcomes["unknown"]
        return json_response({"accepted": len(rows) - repeated, "duplicates": repeated, "unknown": unknown})

    async def reload(self, request: Request) -> Response:
        """Serve another checkpoint, or the run's current files. On failure the served model stays."""
        if not self.options.bearers:
            raise BadRequest("only where a token is set", 403)
        body = validated(schemas.ReloadBody, parsed(request.state.body or b"{}"))
        wanted = body.model_dump(exclude_none=True)
        try:
            serving = await in_daemon_thread(self.manager.swap, **wanted)
        except SwapFailed as error:
            self.metrics.swaps.labels("failed").inc()
            raise BadRequest(f"kept what was served: {error}", 409) from error
        self.metrics.swaps.labels("done").inc()
        self.metrics.serves(**serving.versions)
        return json_response({"status": "ok", "versions": serving.versions, **serving.about})

    async def _read(self, request: Request, work: Callable[..., T], *arguments: Any) -> T:
        if len(request.state.body) <= BYTES_IN_LOOP:
            return work(*arguments)
        async with self._large:
            if time.monotonic() > request.state.deadline:
                raise Overloaded(1)
            return await asyncio.to_thread(work, *arguments)

    def _asked_plainly(self, request: Request) -> _ListRequest:
        body = validated(schemas.RecommendRequest, parsed(request.state.body))
        serving = self.manager.now
        request_id = request.state.request_id
        history, unknown = known(serving, body.history, body.k)
        if not history:
            raise BadRequest("history: none of its ids is in the catalogue")
        # no user: no experiment
        asked = Asked(serving, self._explored(Query(history, body.exclude_history, time=time.time()), request_id))
        return _ListRequest(request_id, body.k, self._hashes(None, body), asked, unknown)

    def _asked(self, request: Request, bodies: Sequence[RecommendBody]) -> list[_ListRequest]:
        made = request.state.request_id
        ids = [
            body.request_id or (f"{made}.{index % LONGEST_BATCH}" if index else made)
            for index, body in enumerate(bodies)
        ]
        if len({*ids}) != len(ids):
            raise BadRequest("requests: two of them have the same request_id")
        users = [None if body.user_id is None else self.options.user_hash(body.user_id) for body in bodies]
        ones = []
        assignments = self.manager.assign(users)
        serving = assignments[0].serving  # all are of one swap and share its items
        for request_id, body, user, assigned in zip(ids, bodies, users, assignments, strict=True):
            history, unknown = known(serving, body.history, body.k)
            narrowing = narrow(serving, body.include, body.exclude)
            now = time.time() if body.now is None else body.now
            query = Query(
                history, body.exclude_history, narrowing.without, narrowing.eligible, user=body.user_id, time=now
            )
            if body.times is not None:
                days = serving.recommender.of_known(body.history, [at / DAY for at in body.times])
                query = query._replace(days=days, now=now / DAY)
            elif body.now is not None:  # rules read it
                query = query._replace(now=body.now / DAY)
            if body.shown:  # a rule reads it
                when = None if body.shown_times is None else [at / DAY for at in body.shown_times]
                shown, days = serving.recommender.known(body.shown)[0], serving.recommender.of_known(body.shown, when)
                query = query._replace(shown=shown, shown_days=days)
            query = query if assigned.interleaved else self._explored(query, request_id)
            asked, hashes = Asked(assigned.serving, query, assigned.trial), self._hashes(user, body)
            ones.append(
                _ListRequest(request_id, body.k, hashes, asked, unknown, narrowing, assigned.interleaved, body.explain)
            )
        return ones

    def _explored(self, query: Query, request_id: str) -> Query:
        explore = self.options.explore
        return query if explore is None else explore.of(query, request_id)

    async def _lists(self, request: Request, ones: Sequence[_ListRequest]) -> list[Answered]:
        deadline, left = request.state.deadline, request.state.deadline - time.monotonic()
        second = [Asked(one.interleaved.serving, one.asked.query) for one in ones if one.interleaved]
        # batches leave room for single requests
        self.queue.check(left / 2 if len(ones) > 1 else left, len(ones) + len(second))
        asked = [one._replace(deadline=deadline) for one in (*(one.asked for one in ones), *second)]
        futures = [self.queue.submit(one, deadline, lambda: disconnected(request)) for one in asked]
        answers = [await futures[0]] if len(futures) == 1 else list(await asyncio.gather(*futures))
        for want, answer in zip(asked, answers, strict=True):
            self.metrics.length.observe(len(answer.list.items))
            if answer.degraded is not None:
                self.metrics.fallbacks.inc()
            if want.trial is not None:
                self.metrics.arm_lists.labels(want.trial.arm, want.trial.reason, answer.list.source).inc()
        others, shown = iter(answers[len(ones) :]), []
        for one, answer in zip(ones, answers[: len(ones)], strict=True):
            if one.interleaved is not None:
                answer = one.interleaved.join(answer, next(others), one.id, one.k)
            shown.append(answer._replace(list=answer.list.first(one.k)))
        return shown

    async def _reasons(
        self, request: Request, one: _ListRequest, reply: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        serving, deadline = one.asked.serving, request.state.deadline

        def explained() -> list[dict[str, Any]]:
            serving.begin(deadline)
            return reasons(serving.recommender, one.asked.query, reply["items"], reply["source"])

        async with self._explaining:
            if reply["repeated"] or time.monotonic() > deadline:
                return None
            return await in_daemon_thread(explained)

    def _hashes(self, user: str | None, body: schemas.RecommendRequest | RecommendBody) -> RequestHashes:
        fields = body.model_dump(exclude={"history", "user_id", "request_id", "explain"}, exclude_defaults=True)
        for name in {"include", "exclude"} & fields.keys():
            fields[name] = filter_key(fields[name])
        hashed = self.options.user_hash
        return RequestHashes(user, hashed.fingerprint, hashed.of_history(body.history, fields))

    async def _record(
        self,
        request: Request,
        ones: Sequence[_ListRequest],
        answers: Sequence[Answered],
        replies: Sequence[dict[str, Any]],
    ) -> None:
        """Log lists before they are sent; a repeated request id gets the logged list, or 409."""
        fields = request.state.log
        fields |= {"request_id": ones[0].id, "lists": len(ones), "versions": replies[0]["versions"]}
        if ones[0].hashes.user is not None:
            fields["user"] = ones[0].hashes.user
        if self.exposures is None:
            return
        ms = 1000 * (time.perf_counter() - request.state.started)
        rows = [exposure(one.id, one.hashes, one.asked, answer, ms) for one, answer in zip(ones, answers, strict=True)]
        for one in ones:
            if one.asked.trial is not None:
                self.metrics.arm_seconds.labels(one.asked.trial.arm).observe(ms / 1000)
        for row, recorded, reply, one in zip(rows, await self.exposures.write(rows), replies, ones, strict=True):
            if not same_request(recorded, row):
                why = "was used for another user, history, k or filter; send a new one"
                raise BadRequest(f"request_id: {why}", 409)
            if recorded != row:
                reply.pop("experiment", None)  # it describes the new list
                reply |= _repeated(recorded, one.asked.serving)


def known(serving: Serving, history: Sequence[ItemId], k: int) -> tuple[list[int], list[ItemId]]:
    """Return the items of a history, and its unknown ids; `BadRequest` if `k` exceeds the beam."""
    if k > serving.recommender.width:
        raise BadRequest(f"k: more than the beam holds, {serving.recommender.width}")
    return serving.recommender.known(history)


def narrow(serving: Serving, include: Filter | None, exclude: Filter | None) -> Narrowing:
    """Resolve the filters of a request; `BadRequest` for an unknown column or value."""
    try:
        return serving.recommender.narrow(include, exclude)
    except UnknownGroup as error:
        raise BadRequest(error.public_message) from None
    except UserError:  # its message holds the value
        raise BadRequest("include, exclude: item ids, or values by group") from None


def _bodies(request: Request, one: type[BodyT], several: type[schemas.Body], name: str) -> tuple[bool, list[BodyT]]:
    content = parsed(request.state.body)
    if isinstance(content, dict) and name in content:
        return True, getattr(validated(several, content), name)
    return False, [validated(one, content)]


def disconnected(request: Request) -> bool:
    """Return whether the client has closed its connection."""
    return bool(request.state.disconnected())


def _repeated(recorded: Exposure, serving: Serving) -> dict[str, Any]:
    recommender = serving.recommender
    rows = [recommender.known([item])[0] for item in recorded.slate]
    if recorded.catalog_version != serving.versions["catalog"]:
        rows = [[] for _ in rows]  # codes may have changed
    return {
        "items": list(recorded.slate),
        "scores": [],
        "codes": [recommender.catalog.codes[row[0]].tolist() if row else [] for row in rows],
        "source": recorded.source,
        "reranked": False,
        "degraded": recorded.degraded,
        "repeated": True,
        "short": None,
        "versions": {
            "model": recorded.model_version,
            "catalog": recorded.catalog_version,
            "arm": recorded.arm_version or recorded.arm,
        },
        **_experiment(recorded.experiment, recorded.salt_version, recorded.arm, recorded.deal),
    }


def _experiment(name: str | None, plan: str | None, arm: str, reason: str | None) -> dict[str, Any]:
    return {} if name is None else {"experiment": {"name": name, "plan": plan, "arm": arm, "deal": reason}}


def _reply(one: _ListRequest, answer: Answered) -> dict[str, Any]:
    shown, trial, narrowing = answer.list, one.asked.trial, one.narrowing
    ruled = one.asked.serving.recommender.active_rules is not None and answer.degraded is None
    content = {} if trial is None else _experiment(trial.experiment, trial.plan, trial.arm, trial.reason)
    return {
        "request_id": one.id,
        "items": shown.items,
        "scores": shown.scores,
        "codes": shown.codes,
        "source": shown.source,
        "reranked": answer.reranked,
        "degraded": answer.degraded,
        "repeated": False,
        "short": why_short(narrowing, one.k, len(shown.items), ruled),
        "unknown": one.unknown,
        "versions": one.asked.versions,
        **content,
    }
