"""HTTP application: a history in, a list out. Needs the extra `serve`; docs/how-to/serve.md lists the routes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from html import escape
from threading import Lock
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from adagrpo.exposures.exposure_log import SinkFailed
from adagrpo.serving import schemas
from adagrpo.serving.arms import ArmManager, Switching
from adagrpo.serving.batch_queue import BatchQueue
from adagrpo.serving.exposure_rows import ExposureRows
from adagrpo.serving.middleware import RequestMiddleware
from adagrpo.serving.model_manager import Answered, Asked, ModelManager, SwapFailed
from adagrpo.serving.options import Options
from adagrpo.serving.playground import ExplainBody, Playground
from adagrpo.serving.routes import Routes, answered, json_response
from adagrpo.serving.service_metrics import ServiceMetrics

LOOK_SECONDS = 0.1  # interval of lag measurements
LINGER = 0.15  # see `BatchQueue`
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
pre { overflow-x: auto; padding: .5rem 1rem; border: 1px solid; border-radius: 4px; }
h2 code { font-size: 1.1rem; }
"""


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

        def observe(size: int, seconds: float) -> None:
            self.metrics.batch.observe(size)
            self.metrics.batch_seconds.observe(seconds)

        def not_logged(error: SinkFailed) -> None:
            self.metrics.not_logged.inc()
            self.options.log.event("exposure_log", outcome="failed", why=str(error))

        self.queue.observe = observe
        self.exposures = None if options.exposures is None else ExposureRows(options.exposures, not_logged)
        self.metrics.serves(**manager.now.versions)
        self.routes = Routes(manager, self.queue, self.metrics, options, lambda: not self.draining, self.exposures)
        self.switching = None
        if isinstance(manager, ArmManager):
            self.switching = Switching(manager.trial, self.metrics, options)
            self.routes.experiment = self.switching.measure
        self.api = _api(self.routes, self.switching, self._lifespan)
        direct = {
            "/recommend": answered(self.routes.recommend),
            "/v1/recommend": answered(self.routes.recommend_v1),
        }
        self.middleware = RequestMiddleware(
            self.api, options, self.metrics, self.queue.late, direct, lambda: self.draining
        )
        self._entrance = TrustedHostMiddleware(self.middleware, options.hosts, www_redirect=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        await self._entrance(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                due = time.monotonic() + LOOK_SECONDS
                await asyncio.sleep(LOOK_SECONDS)
                self.middleware.lag = max(0.0, time.monotonic() - due)

        def defect(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, BaseException):
                self.options.log.defect(error)
            else:
                self.options.log.event("defect", type="loop")

        asyncio.get_running_loop().set_exception_handler(defect)
        watching = asyncio.create_task(watch())
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
            try:
                serving = self.manager.swap(after_others=True)
            except SwapFailed as error:
                self.metrics.swaps.labels("failed").inc()
                self.options.log.event("reload", outcome="failed", why=str(error), kept=self.manager.now.versions)
            else:
                self.metrics.swaps.labels("done").inc()
                self.metrics.serves(**serving.versions)
                self.options.log.event("reload", outcome="done", versions=serving.versions)


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
            responses=(refused | {status: {"model": answer} for status in statuses if answer}) if statuses else None,
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
    page = Playground(routes.manager)
    app.add_api_route("/", answered(page.page), include_in_schema=False)
    route("/v1/items", page.search, statuses=())  # without answers in the schema
    route("/v1/explain", page.explain, None, ExplainBody, statuses=())

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


def api_page(description: Mapping[str, Any]) -> str:
    """Return a page of the routes as HTML, from the OpenAPI schema; it loads nothing."""
    title = escape(description["info"]["title"])
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
        '<p>The same for programs: <a href="/openapi.json">/openapi.json</a>.</p>'
    ]
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            about = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(operation.get("description", "")))
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{about}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body:
                text = escape(json.dumps(body, indent=1))
                parts.append(f"<details><summary>Body</summary><pre>{text}</pre></details>")
    schemas = json.dumps(description.get("components", {}).get("schemas", {}), indent=1)
    return "".join(parts) + f"<h2>Schemas</h2><pre>{escape(schemas)}</pre></html>"
