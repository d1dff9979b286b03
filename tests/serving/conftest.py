"""A service in a thread, over a recommender that takes as long as a test says, and clients that know no library."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adagrpo.data.groups import UnknownGroup
from adagrpo.lists import Query, Recommendations
from adagrpo.lists.eligibility import Narrowing
from adagrpo.serving.app import Application
from adagrpo.serving.draining import Server, listen
from adagrpo.serving.model_manager import ModelManager, Serving
from adagrpo.serving.options import Limits, Options

ITEMS = 20
VERSIONS = {"model": "m1", "catalog": "c1", "arm": "sft/best"}


class Recommender:
    """Recommends the items after the last of a history, and waits `seconds` for a batch."""

    width, exclude_history, reward, active_rules = 10, False, None, None

    def __init__(self) -> None:
        self.item_ids = list(range(ITEMS))
        self.catalog = SimpleNamespace(codes=torch.arange(ITEMS)[:, None], listed=torch.arange(ITEMS) != 9)
        self.seconds, self.batches = 0.0, list[int]()
        self.go = threading.Event()
        self.go.set()

    def known(self, history: Sequence[Any]) -> tuple[list[int], list[Any]]:
        rows = [(int(name) if str(name).isdigit() and int(name) < ITEMS else -1, name) for name in history]
        return [item for item, _ in rows if item >= 0], [name for item, name in rows if item < 0]

    def of_known(self, history: Sequence[Any], days: Sequence[float]) -> list[float]:
        return [day for name, day in zip(history, days, strict=True) if self.known([name])[0]]

    def narrow(self, include: Any, exclude: Any) -> Narrowing:
        if isinstance(include, dict):
            raise UnknownGroup(f"include: no column {include}", "include: no such group")
        without = set(self.known(exclude or ())[0]) | (set() if include is None else set(range(ITEMS)) - {*include})
        return Narrowing(tuple(without), None, ITEMS - len(without))

    def recommend(self, queries: Sequence[Query]) -> list[Recommendations]:
        histories = [query.history for query in queries]
        self.queries = queries
        self.batches.append(len(histories))
        time.sleep(self.seconds)
        assert self.go.wait(10)
        if any(ITEMS - 1 in history for history in histories):
            raise RuntimeError(f"cannot bear {histories}")
        lists = [[((history or [0])[-1] + place) % ITEMS for place in range(1, 11)] for history in histories]
        lists = [[item for item in row if item not in query.without] for row, query in zip(lists, queries, strict=True)]
        found = [Recommendations(items, [-float(item) for item in items], [[i] for i in items]) for items in lists]
        found = [one if h else one._replace(source="popular") for one, h in zip(found, histories, strict=True)]
        return [_drawn(one, query) if query.temperature else one for one, query in zip(found, queries, strict=True)]


def _drawn(found: Recommendations, query: Query) -> Recommendations:
    keys = [float(-place) for place in range(len(found.items) + 1)]
    return found._replace(source="sampled", log_propensities=[-1.0] * len(found.items), draw_keys=keys)


class Service:
    """The application at a port of its own."""

    def __init__(
        self, options: Options, load: Callable[..., Serving] | None = None, manager: ModelManager | None = None
    ) -> None:
        self.recommender = Recommender()
        serving = Serving(self.recommender, {"name": "stub"}, VERSIONS)  # type: ignore[arg-type]
        self.app = Application(manager or ModelManager(serving, load), options)
        self.listener = listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        self.server = Server(self.app)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers of the answer to a GET, or with a body to a POST."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        text = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        known = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request("GET" if body is None else "POST", path, text, known)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        kind = response.headers.get_content_type()
        answer = json.loads(content) if kind == "application/json" else content.decode()
        return response.status, answer, {name.lower(): value for name, value in response.getheaders()}

    def raw(self, content: bytes = b"") -> socket.socket:
        """A connection on which bytes were sent."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.sendall(content)
        return client

    def end(self) -> None:
        self.recommender.go.set()
        if self.thread.is_alive():
            self.server.end()
            self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def stub() -> Iterator[Callable[..., Service]]:
    """Makes services that end with the test."""
    made: list[Service] = []

    def make(
        options: Options | None = None, load: Callable[..., Serving] | None = None, manager: ModelManager | None = None
    ) -> Service:
        made.append(Service(options or Options(limits=Limits(grace_seconds=0.0)), load, manager))
        return made[-1]

    yield make
    for service in made:
        service.end()


@pytest.fixture
def whole() -> Callable[[socket.socket], bytes]:
    """Reads one answer from a connection: head and body may come apart."""

    def read(client: socket.socket) -> bytes:
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
            head, there, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if there and length is not None and len(body) >= int(length[1]):
                break
        return answer

    return read
