"""Page at `/` to inspect lists, with the routes `/v1/items?search=WORDS` and `POST /v1/explain`.

Where a token is set, these need it too, so a proxy must add it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Annotated, Any
from weakref import WeakKeyDictionary, ref

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from adagrpo.errors import ServiceError, UserError
from adagrpo.lists.explanation import ItemTitles, explain
from adagrpo.lists.query import Query
from adagrpo.serving.batch_queue import in_daemon_thread
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.routes import disconnected, json_response, known, narrow
from adagrpo.serving.schemas import BadRequest, Body, Filter, Id, parsed, validated

MOST_FOUND = 20
REWARD_SECONDS = 1.0  # that the page may hold the reward, while requests wait


class ExplainBody(Body):
    """The body of `POST /v1/explain`."""

    history: Annotated[list[Id], Field(max_length=200)]
    k: Annotated[int, Field(ge=1, le=100)] = 10
    exclude_history: bool | None = None
    include: Filter | None = None
    exclude: Filter | None = None
    arm: Annotated[str, Field(max_length=100)] | None = None


@dataclass
class Playground:
    """Handlers of the page, and the model loaded for it."""

    manager: ModelManager
    other: Serving | None = None
    other_arm: str | None = None
    loaded_for: Callable[[], Serving | None] = lambda: None  # served model when the other was loaded
    titles: WeakKeyDictionary[Serving, ItemTitles] = field(default_factory=WeakKeyDictionary)  # freed with their model
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def page(self, request: Request) -> Response:
        """Return a page to inspect lists."""
        text = resources.files("adagrpo.serving").joinpath("playground.html").read_text(encoding="utf-8")
        script = re.findall(r"<script>(.*?)</script>", text, re.S)[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'"
        headers = {"content-security-policy": f"{policy}; base-uri 'none'; frame-ancestors 'none'"}
        return HTMLResponse(text, headers=headers)

    async def search(self, request: Request) -> Response:
        """Return items whose id or title holds the words of `search`."""
        words = request.query_params.get("search", "")[:200]
        serving = self.manager.now
        async with self._lock:
            found = await asyncio.to_thread(self._titles(serving).search, words, MOST_FOUND)
        return json_response({"items": found})

    async def explain(self, request: Request) -> Response:
        """Return a list and its explanation."""
        body = validated(ExplainBody, parsed(request.state.body))
        async with self._lock:
            if disconnected(request):  # while waiting for the lock
                return Response(status_code=499)
            return json_response(await in_daemon_thread(self._explained, body))

    def _explained(self, body: ExplainBody) -> dict[str, Any]:
        serving = self._serving(body.arm)
        recommender, titles = serving.recommender, self._titles(serving)
        history, unknown = known(serving, body.history, body.k)
        narrowing = narrow(serving, body.include, body.exclude)
        query = Query(history, body.exclude_history, narrowing.without, narrowing.eligible)
        shown = {"history": [titles.of(item) for item in history], "unknown": unknown, "versions": serving.versions}
        serving.begin(time.monotonic() + REWARD_SECONDS)
        return shown | explain(recommender, titles, query, body.k)

    def _titles(self, serving: Serving) -> ItemTitles:
        if serving not in self.titles:
            self.titles[serving] = ItemTitles(serving.recommender)
        return self.titles[serving]

    def _serving(self, arm: str | None) -> Serving:
        served = self.manager.now
        if arm is None:
            return served
        if arm not in served.about.get("arms", ()):
            raise BadRequest("arm: not trained in this run")
        if self.other is None or self.other_arm != arm or self.loaded_for() is not served:
            try:
                self.other = self.manager.load_other(arm=arm, catalog=served.versions["catalog"])
            except (UserError, ServiceError) as error:
                raise BadRequest(str(error), 409) from error
            self.other_arm, self.loaded_for = arm, ref(served)  # weak: does not keep a replaced model
        return self.other
