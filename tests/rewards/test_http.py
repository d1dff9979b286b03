"""The HTTP reward against a real server that is slow, fails, and answers wrongly."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from adagrpo.errors import ServiceError, UserError
from adagrpo.rewards.http import HttpReward
from adagrpo.types import Histories

IDS = ["a", "b", "c", "d"]
HISTORIES = Histories(torch.tensor([[0, 1], [2, 0], [3, 3]]), torch.tensor([2, 1, 2]))
ITEMS = torch.tensor([[2, -1, 3], [-1, -1, -1], [0, 1, 2]])
RIGHT = [[2 + ord("c"), 2 + ord("d")], [2 + ord(item) for item in "abc"]]


def reward(url: str, **options: Any) -> HttpReward:
    return HttpReward(url, IDS, **({"backoff_seconds": 0.001, "timeout_seconds": 5.0} | options))


def scores(found: torch.Tensor) -> list[list[float]]:
    return [[value for value in row if value == value] for row in found.tolist() if any(v == v for v in row)]


def answer(value: Any, status: int = 200) -> Callable[..., None]:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda service, handler, body: service.reply(handler, content, status)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_come_back_in_their_order(service: Any, batch_size: int) -> None:
    actual = reward(service.url, batch_size=batch_size).score(HISTORIES, ITEMS)
    assert scores(actual) == RIGHT and actual.isnan().sum() == 4
    assert sorted(len(body["histories"]) for body in service.requests) == ([2] if batch_size > 1 else [1, 1])
    whole = {(tuple(h), tuple(c)) for body in service.requests for h, c in zip(*body.values(), strict=True)}
    assert whole == {(("a", "b"), ("c", "d")), (("d", "d"), ("a", "b", "c"))}


def test_no_more_requests_at_once_than_allowed(service: Any) -> None:
    working: list[int] = []
    most = [0]

    def slow(service: Any, handler: Any, body: Any) -> None:
        """Counts only until the answer goes out: who has it may ask again before this thread is heard of."""
        with service.lock:
            working.append(1)
            most[0] = max(most[0], len(working))
        time.sleep(0.03)
        with service.lock:
            working.pop()
        service.well(handler, body)

    service.behaviour = slow
    many = Histories(torch.arange(4).repeat(3).unsqueeze(1), torch.ones(12, dtype=torch.int64))
    reward(service.url, batch_size=1, concurrency=3).score(many, torch.zeros(12, 1, dtype=torch.int64))
    assert len(service.requests) == 12 and most[0] == 3


def test_one_request_needs_no_thread(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a process waits for the threads of a pool: for a service that hangs, as long as it hangs."""
    monkeypatch.setattr("adagrpo.rewards.http.ThreadPoolExecutor", None)
    assert scores(reward(service.url).score(HISTORIES, ITEMS)) == RIGHT


def test_nothing_is_asked_where_there_is_nothing_to_score(service: Any) -> None:
    assert reward(service.url).score(HISTORIES, torch.full((3, 2), -1)).isnan().all()
    assert not service.requests


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_status_that_may_pass_is_tried_again_after_growing_pauses(
    service: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def recovers(service: Any, handler: Any, body: Any) -> None:
        if len(service.requests) <= 4:
            service.reply(handler, b"busy", status)
        else:
            service.well(handler, body)

    service.behaviour = recovers
    monkeypatch.setattr("urllib3.util.retry.time.sleep", pauses.append)
    actual = reward(service.url, retries=4, backoff_seconds=0.5).score(HISTORIES, ITEMS)
    assert scores(actual) == RIGHT and pauses == [0.5, 1.0, 2.0]  # the first retry comes at once


@pytest.mark.parametrize(("header", "pauses"), [("7", [7]), ("9999", [30]), ("0", [])])
def test_a_service_that_is_full_is_asked_when_it_says(
    service: Any, header: str, pauses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    actual: list[float] = []

    def full(service: Any, handler: Any, body: Any) -> None:
        if len(service.requests) > 1:
            service.well(handler, body)
        else:
            service.reply(handler, b"", 503, **{"Retry-After": header})

    service.behaviour = full
    monkeypatch.setattr("urllib3.util.retry.time.sleep", actual.append)
    assert scores(reward(service.url).score(HISTORIES, ITEMS)) == RIGHT and len(service.requests) == 2
    assert actual == pauses


def test_a_service_that_stays_full_is_said(service: Any) -> None:
    service.behaviour = answer({}, 503)
    with pytest.raises(ServiceError, match=r"answered status 503, in 3 attempts; fix it, and the same command"):
        reward(service.url, retries=2).score(HISTORIES, ITEMS)
    assert len(service.requests) == 3


def test_a_time_out_is_tried_again_and_then_said(service: Any) -> None:
    def slow(service: Any, handler: Any, body: Any) -> None:
        time.sleep(0.3)
        service.well(handler, body)

    service.behaviour = slow
    with pytest.raises(ServiceError, match=r"gave no answer in 0.05 seconds, in 2 attempts; fix it, and the same"):
        reward(service.url, timeout_seconds=0.05, retries=1).score(HISTORIES, ITEMS)
    assert len(service.requests) == 2


def test_an_answer_that_comes_byte_by_byte_is_late_as_a_whole(service: Any) -> None:
    """Each read is in time: 0.02 seconds of 0.2."""
    for headers_first in (True, False):

        def drips(service: Any, handler: Any, body: Any, headers_first: bool = headers_first) -> None:
            content = json.dumps({"scores": service.scores(body)}).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content) + 500}\r\n\r\n".encode()
            if headers_first:
                handler.wfile.write(head)
            for byte in [] if headers_first else head:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.02)
            for byte in content + b" " * 500:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.02)

        service.behaviour, said, started = drips, list[str](), time.monotonic()
        with pytest.raises(ServiceError, match=r"gave no answer in 0\.2 seconds, in 2 attempts; fix it"):
            reward(service.url, timeout_seconds=0.2, retries=1, say=said.append).score(HISTORIES, ITEMS)
        assert time.monotonic() - started < 2  # the whole answer would take 10 seconds
        assert said == [f"note: reward {service.url}: gave no answer in 0.2 seconds"] * 2


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_has_a_bound(service: Any, status: int) -> None:
    """5 scores: a megabyte, and 64 bytes for each of them."""
    most = 2**20 + 5 * 64

    def long(service: Any, handler: Any, body: Any, more: int = 1) -> None:
        content = json.dumps({"scores": service.scores(body)}).encode()
        service.reply(handler, content + b" " * (most + more - len(content)), status)

    service.behaviour = long
    with pytest.raises(ServiceError, match=r"answered more than 1,048,896 bytes; fix it"):
        reward(service.url, retries=1).score(HISTORIES, ITEMS)
    assert len(service.requests) == 1
    service.behaviour = lambda *arguments: long(*arguments, more=0)
    if status == 200:
        assert scores(reward(service.url).score(HISTORIES, ITEMS)) == RIGHT


def test_a_connection_that_breaks_off_is_tried_again(service: Any) -> None:
    def breaks_off(service: Any, handler: Any, body: Any) -> None:
        if len(service.requests) == 1:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"scores": [[1')
        else:
            service.well(handler, body)

    service.behaviour = breaks_off
    assert scores(reward(service.url).score(HISTORIES, ITEMS)) == RIGHT


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/score"
    with pytest.raises(
        ServiceError, match=rf"reward {url}: could not be asked \(.*Connection refused\), in 3 attempts"
    ):
        reward(url, retries=2).score(HISTORIES, ITEMS)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (answer({"scores": [[1, 2]]}), "answered 1 rows for 2 histories"),
        (answer({"scores": [[1, 2], [3, 4]]}), "answered 2 scores for the 3 candidates of history 1"),
        (answer(b'{"scores": [[1, 2], [3, NaN, 5]]}'), "answered nan for item 'b' of history 1; scores must be finite"),
        (answer(b'{"scores": [[1, 2], [3, 1e999, 5]]}'), "answered inf for item 'b' of history 1"),
        (answer({"scores": [[1, 2], [3, "4", 5]]}), "answered '4' for item 'b' of history 1; expected a number"),
        (answer({"scores": {"0": [1]}}), "expected a list of scores for each history"),
        (answer([[1, 2], [3, 4, 5]]), 'answered no object with "scores"'),
        (answer(b"<html>"), "answered what is not JSON"),
        (answer(b"\xff\xfe{"), "answered what is not JSON"),
        (answer(b"[" * 10_000), "answered what is not JSON"),
        (answer({}, 404), "answered status 404;"),
        (answer({}, 422), "answered status 422;"),
    ],
)
def test_a_wrong_answer_ends_it_at_once(service: Any, behaviour: Any, message: str) -> None:
    service.behaviour = behaviour
    with pytest.raises(ServiceError, match=message) as caught:
        reward(service.url).score(HISTORIES, ITEMS)
    assert len(service.requests) == 1 and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"reward {service.url}: ")


def test_a_redirect_is_not_followed(service: Any) -> None:
    def elsewhere(service: Any, handler: Any, body: Any) -> None:
        service.reply(handler, b"", 307, Location="file:///etc/passwd")

    service.behaviour = elsewhere
    with pytest.raises(ServiceError, match="answered status 307; redirects are not followed"):
        reward(service.url).score(HISTORIES, ITEMS)
    assert len(service.requests) == 1


def test_a_failure_stops_what_was_not_sent_yet(service: Any) -> None:
    service.behaviour = answer({}, 404)
    many = Histories(torch.zeros(50, 1, dtype=torch.int64), torch.ones(50, dtype=torch.int64))
    with pytest.raises(ServiceError):
        reward(service.url, batch_size=1, concurrency=2).score(many, torch.zeros(50, 1, dtype=torch.int64))
    assert len(service.requests) < 25


def test_a_token_comes_from_the_environment(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"reward\.token_env: the environment variable NO_TOKEN is not set"):
        reward(service.url, token_env="NO_TOKEN")
    monkeypatch.setenv("A_TOKEN", "abc")
    reward(service.url, token_env="A_TOKEN").score(HISTORIES, ITEMS)
    assert service.headers[0]["Authorization"] == "Bearer abc"


def test_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="url must be http:// or https://"):
        reward("ftp://127.0.0.1/score")
