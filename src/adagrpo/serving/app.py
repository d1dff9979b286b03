"""HTTP application: a history in, a list out. Needs the extra `serve`; docs/how-to/serve.md lists the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from adagrpo.exposures.exposure_log import ExposureSink, SinkFailed
from adagrpo.exposures.user_hash import UserHash, read_key
from adagrpo.lists.exploration import Exploration
from adagrpo.serving import schemas
from adagrpo.serving.api_page import api_page
from adagrpo.serving.arms import ArmManager, Switching
from adagrpo.serving.batch_queue import BatchQueue
from adagrpo.serving.bearer import Bearers
from adagrpo.serving.exposure_rows import ExposureRows
from adagrpo.serving.intake import Intake
from adagrpo.serving.limits import Limits
from adagrpo.serving.model_manager import Answered, Asked, ModelManager, SwapFailed
from adagrpo.serving.playground import add_page
from adagrpo.serving.request_log import RequestLog
from adagrpo.serving.routes import Routes, answered, json_response
from adagrpo.serving.service_metrics import ServiceMetrics

LOOK_SECONDS = 0.1  # interval of lag measurements
LINGER = 0.15  # see `BatchQueue`


@dataclass
class Options:
    """Options of a service."""

    limits: Limits = field(default_factory=Limits)
    bearers: Bearers = field(default_factory=Bearers)
    log: RequestLog = field(default_factory=RequestLog)
    user_hash: UserHash = field(default_factory=lambda: read_key(None))
    exposures: ExposureSink | None = None  # None: no log
    explore: Exploration | None = None  # None: no sampling
    hosts: Sequence[str] = ("*",)  # accepted Host headers
    threads: int = 1  # that compute lists, each on one processor


class Application:
    """ASGI application and its parts."""

    def __init__(self, manager: ModelManager, options: Options) -> None:
        self.manager, self.options, self.metrics = manager, options, ServiceMetrics()
        self.draining = False
        self._reloading, self._next_reload = Lock(), Lock()
        self.queue = BatchQueue[Asked, Answered](
            manager.answer,
            waiting=options.limits.waiting,
            threads=options.threads,
            linger=LINGER,
            begin=partial(torch.set_num_threads, 1) if options.threads > 1 else lambda: None,
        )
        self.queue.observe = self._observe
        sink = options.exposures
        self.exposures = None if sink is None else ExposureRows(sink, self._not_logged)
        self.metrics.serves(**manager.now.versions)
        self.routes = Routes(
            manager,
            self.queue,
            self.metrics,
            options.user_hash,
            lambda: not self.draining,
            bool(options.bearers),
            self.exposures,
            options.explore,
        )
        self.switching = None
        if isinstance(manager, ArmManager):
            self.switching = Switching(manager.trial, self.metrics, options.log, bool(options.bearers))
            self.routes.experiment = self.switching.measure
        self.api = _api(self.routes, self.switching, self._lifespan)
        direct = {"/recommend": self.routes.recommend, "/v1/recommend": self.routes.recommend_v1}
        self.intake = Intake(
            self.api,
            options.limits,
            options.bearers,
            self.metrics,
            options.log,
            self.queue.late,
            {path: answered(handler) for path, handler in direct.items()},
            lambda: self.draining,
        )
        self._entrance = TrustedHostMiddleware(self.intake, options.hosts, www_redirect=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        await self._entrance(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(self._defect)
        watching = asyncio.create_task(self._watch_loop())
        yield
        watching.cancel()
        self.queue.close()
        if self.exposures is not None:
            self.exposures.close()

    def reload(self) -> None:
        """Serve the run's current files, after a running reload; one waiting call stands for all."""
        if not self._next_reload.acquire(blocking=False):
            return
        with self._reloading:
            self._next_reload.release()
            self._reload()

    def _reload(self) -> None:
        try:
            serving = self.manager.swap(after_others=True)
        except SwapFailed as error:
            self.metrics.swaps.labels("failed").inc()
            self.options.log.event("reload", outcome="failed", why=str(error), kept=self.manager.now.versions)
        else:
            self.metrics.swaps.labels("done").inc()
            self.metrics.serves(**serving.versions)
            self.options.log.event("reload", outcome="done", versions=serving.versions)

    async def _watch_loop(self) -> None:
        """Measure the lag of the event loop."""
        while True:
            due = time.monotonic() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self.intake.lag = max(0.0, time.monotonic() - due)

    def _defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException):
            self.options.log.defect(error)
        else:
            self.options.log.event("defect", type="loop")

    def _not_logged(self, error: SinkFailed) -> None:
        self.metrics.not_logged.inc()
        self.options.log.event("exposure_log", outcome="failed", why=str(error))

    def _observe(self, size: int, seconds: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.batch_seconds.observe(seconds)


def _api(routes: Routes, switching: Switching | None, lifespan: Callable[[FastAPI], Any]) -> FastAPI:
    app = FastAPI(title="adagrpo", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    refused: dict[int | str, dict[str, Any]] = {kind: {"model": schemas.Refusal} for kind in ("4XX", "5XX")}

    def route(
        path: str, handler: Any, answer: Any = None, *bodies: type[BaseModel], statuses: tuple[int, ...] = (200,)
    ) -> None:
        kinds = [body.model_json_schema() for body in bodies]
        content = {"application/json": {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}}
        app.add_api_route(
            path,
            answered(handler),
            methods=["POST" if bodies else "GET"],
            responses=refused | ({} if answer is None else {status: {"model": answer} for status in statuses}),
            response_model=None,
            operation_id=handler.__name__,
            openapi_extra={"requestBody": {"required": True, "content": content}} if bodies else None,
        )

    one_or_more = schemas.RecommendAnswer | schemas.BatchAnswer
    route("/recommend", routes.recommend, schemas.ListAnswer, schemas.RecommendRequest)
    route("/v1/recommend", routes.recommend_v1, one_or_more, schemas.RecommendBody, schemas.BatchBody)
    route("/v1/feedback", routes.feedback, schemas.FeedbackAnswer, schemas.FeedbackBody, schemas.FeedbackEvent)
    route("/v1/admin/reload", routes.reload, schemas.HealthAnswer, schemas.ReloadBody)
    route("/v1/items/{item_id:path}", routes.item, schemas.ItemAnswer)
    route("/health", routes.health, schemas.HealthAnswer)
    route("/livez", routes.livez, schemas.StatusAnswer)
    route("/readyz", routes.readyz, schemas.StatusAnswer, statuses=(200, 503))
    route("/metrics", routes.metrics_text)
    if switching is not None:
        route("/v1/admin/experiment", switching.experiment)
        route("/v1/admin/experiment", switching.switch, None, schemas.SwitchBody)
    add_page(app, routes.manager)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        return json_response(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(api_page(app.openapi()))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        reason = {404: "no such route", 405: "the route does not take this method"}.get(error.status_code, "refused")
        return json_response({"detail": reason}, error.status_code, error.headers)

    return app
