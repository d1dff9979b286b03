"""The client against the service: typed answers, feedback, what is retried, and errors of one line."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adagrpo.client import AsyncClient, BadRequest, Client, FeedbackEvent, RecommendBody, Refused
from adagrpo.errors import ServiceError
from adagrpo.exposures.exposure_store import LocalExposureLog, parts_of, read_parts, rotate
from adagrpo.serving.options import Bearers, Limits, Options

ROOT = Path(__file__).parents[2]
OLD = Limits(grace_seconds=0.0)


def url(service: Any) -> str:
    return f"http://127.0.0.1:{service.port}"


def test_a_list_a_batch_and_clicks_are_answered_and_logged(stub: Callable[..., Any], tmp_path: Path) -> None:
    service = stub(Options(limits=OLD, exposures=LocalExposureLog(tmp_path / "log")))
    with Client(url(service)) as client:
        answer = client.recommend([1, "2", "x"], k=2, user_id="u1", exclude=[3])
        assert (answer.items, answer.unknown, answer.versions.model) == ([4, 5], ["x"], "m1")
        many = client.recommend_all([RecommendBody(history=[turn % 9 + 1], k=1) for turn in range(70)])  # two bodies
        assert [one.items for one in many] == [[turn % 9 + 2] for turn in range(70)]
        assert len({one.request_id for one in many}) == 70
        first = client.click(answer.request_id, 4)
        assert (first.accepted, first.duplicates, first.unknown) == (1, 0, 0)
        event = FeedbackEvent(request_id=answer.request_id, item_id=4, kind="click")
        assert client.feedback([event]).duplicates == 1
        assert client.health().status == "ok"
        again = client.recommend([1, "2", "x"], k=2, user_id="u1", exclude=[3], request_id=answer.request_id)
        assert again.repeated and again.items == answer.items
    service.end()
    rotate(tmp_path / "log")
    assert len(read_parts(parts_of(tmp_path / "log"))[0]) == 71


def test_an_event_loop_has_many_requests_under_way(stub: Callable[..., Any]) -> None:
    service = stub()

    async def ask() -> list[list[Any]]:
        async with AsyncClient(url(service), connections=8) as client:
            assert (await client.health()).status == "ok"
            found = await asyncio.gather(*(client.recommend([turn], k=1) for turn in range(10)))
            assert (await client.recommend_all([RecommendBody(history=[3], k=2)]))[0].items == [4, 5]
            return [one.items for one in found]

    assert asyncio.run(ask()) == [[turn + 1] for turn in range(10)]


def test_refusals_have_the_status_and_the_reason(stub: Callable[..., Any]) -> None:
    service = stub(Options(limits=OLD, bearers=Bearers(["0123456789abcdef"])))
    with Client(url(service)) as client, pytest.raises(Refused, match=r"^status 401: a token is needed") as refused:
        client.recommend([1])
    assert refused.value.status == 401
    with Client(url(service), "0123456789abcdef") as client:
        assert client.recommend([1], k=1).items == [2]
        with pytest.raises(Refused, match=r"^status 422: include: no such group$"):
            client.recommend([1], include={"market": "de"})
        with pytest.raises(BadRequest, match=r"^k: Input should be greater than or equal to 1$"):
            client.recommend([1], k=0)
        with pytest.raises(Refused, match=r"^status 409: there is no exposure log"):
            client.click("r1", 1)


@pytest.fixture
def moody() -> Iterator[tuple[str, list[int], list[dict[str, Any]]]]:
    """A server that answers by a list of statuses, then with a list; and what it was sent."""
    statuses: list[int] = []
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            status = statuses.pop(0) if statuses else 200
            content: dict[str, Any] = {"detail": "busy"}
            if status == 200 and self.path == "/v1/feedback":
                content = {"accepted": 1, "duplicates": 0, "unknown": 0}
            elif status == 200:
                one = {"items": [7], "scores": [None], "codes": [[7]], "source": "fused", "reranked": False}
                one |= {"repeated": False, "short": None, "unknown": []}
                one |= {"versions": {"model": "m", "catalog": "c", "arm": "fuse/best"}}
                content = {"responses": [{"request_id": ask["request_id"], **one} for ask in bodies[-1]["requests"]]}
            text = b"<html>" if status == 502 else json.dumps(content).encode()
            self.send_response(status)
            if status == 503:
                self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", statuses, bodies
    server.shutdown()
    server.server_close()


def test_what_may_be_retried_is_with_the_same_id_and_time(moody: tuple[str, list[int], list[dict[str, Any]]]) -> None:
    address, statuses, bodies = moody
    with Client(address) as client:
        statuses += [503, 502]
        assert client.recommend([1]).items == [7]
        assert len(bodies) == 3 and bodies[0] == bodies[1] == bodies[2] and bodies[0]["requests"][0]["request_id"]
        bodies.clear()
        statuses += [503]
        assert client.click("r1", 1).accepted == 1
        assert bodies[0] == bodies[1] and bodies[0]["events"][0]["time"] > 1e9
        for status in (500, 409, 422):  # a defect, and what would be refused again
            bodies.clear()
            statuses += [status]
            with pytest.raises(Refused, match=f"^status {status}: busy$"):
                client.recommend([1])
            assert len(bodies) == 1
        bodies.clear()
        statuses += [503, 503, 503]
        with pytest.raises(Refused, match=r"^status 503: busy$"):
            client.recommend([1])
        assert len(bodies) == 3
        statuses += [502, 502, 502]
        with pytest.raises(ServiceError, match=r"/v1/recommend: status 502, no answer of adagrpo serve$"):
            client.recommend([1])


def test_nobody_there_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServiceError, match=rf"^http://127.0.0.1:{port}/v1/recommend: no answer \(") as error:
        Client(f"http://127.0.0.1:{port}", retries=0).recommend([1])
    assert "\n" not in str(error.value)


def test_the_schema_of_the_repository_is_that_of_the_service(stub: Callable[..., Any]) -> None:
    written = json.loads((ROOT / "deploy" / "openapi.json").read_text(encoding="utf-8"))
    _, served, _ = stub().ask("/openapi.json")
    said = "curl -s localhost:8000/openapi.json | python -m json.tool > deploy/openapi.json"
    assert written == served, f"another schema is served; write it again: {said}"
