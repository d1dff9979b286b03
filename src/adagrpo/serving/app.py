"""The HTTP application: a history in, a list out. Needs the extra `serve`.

POST /recommend   {"history": [ids, oldest first], "k": 10, "exclude_history": true}
                  ->  {"items": [..], "scores": [..], "unknown": [..]}
GET  /health      {"status": "ok", ...}
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from adagrpo.errors import UserError
from adagrpo.serving.batching import MicroBatcher, Overloaded
from adagrpo.serving.recommender import Query, Recommendations, Recommender

__all__ = ["RecommendRequest", "create_app", "listen", "serve"]

LONGEST_HISTORY = 10_000  # ids that a request may hold


class RecommendRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")

    history: Annotated[list[int | str], Field(min_length=1, max_length=LONGEST_HISTORY)]
    k: Annotated[int, Field(ge=1)] = 10
    exclude_history: bool | None = None  # as /health says


def create_app(recommender: Recommender, about: Mapping[str, Any]) -> FastAPI:
    """An application that answers with a recommender.

    Args:
        recommender: of one checkpoint.
        about: what `/health` says of it beside its status; JSON-able.
    """

    batcher = MicroBatcher[Query, Recommendations](recommender.recommend)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(title="adagrpo", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok", **about})

    @app.post("/recommend")
    async def recommend(request_body: RecommendRequest) -> JSONResponse:
        if request_body.k > recommender.width:
            raise HTTPException(422, f"k: {request_body.k} is more than the beam holds, {recommender.width}")
        history, unknown = recommender.known(request_body.history)
        if not history:
            raise HTTPException(422, "history: none of its ids is in the catalogue")
        query = Query(history, request_body.exclude_history)
        try:
            recommended = await asyncio.wrap_future(batcher.submit(query))
        except Overloaded as error:
            raise HTTPException(503, f"{error}; try again later") from error
        items, scores = recommended.items[: request_body.k], recommended.scores[: request_body.k]
        return JSONResponse({"items": items, "scores": scores, "unknown": unknown})

    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket for the application; port 0 takes a free one.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; choose another") from error
    # asyncio does so for sockets of its own alone; without, the body waits 40 ms for the head to be acknowledged
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until the process is told to end; those begun are answered first."""
    with suppress(KeyboardInterrupt):  # uvicorn passes on the signal that ended it
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
