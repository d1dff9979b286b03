"""What a client that means harm, or knows no better, can do: be refused, in one short line, and nothing else."""

from __future__ import annotations

import io
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.reliability.heavy import heavy_bodies

from adagrpo.exposures.exposure_store import LocalExposureLog
from adagrpo.pipeline.serve import OWN_NAMES
from adagrpo.serving import routes
from adagrpo.serving.options import Limits, Options, RequestLog
from adagrpo.serving.routes import BYTES_IN_LOOP
from adagrpo.serving.schemas import BadRequest, BatchBody, FeedbackBody, RecommendBody, parsed

QUICK = Limits(body_seconds=0.3, idle_seconds=1, grace_seconds=0.0)
SECRET = "alice-7731"


def read_all(client: socket.socket) -> bytes:
    """What comes until the connection is closed."""
    chunks = []
    while chunk := client.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def post(body: bytes, path: str = "/v1/recommend", extra: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


BAD_BODIES = [
    b'{"history": [NaN]}',
    b'{"history": [Infinity]}',
    b'{"history": [1], "k": 1e999}',
    b'{"history": [1e999]}',
    b'{"history": [-Infinity], "user_id": "%s"}' % SECRET.encode(),
    b'{"history": ["\\ud800"]}',
    b'{"history": ["\\udfff%s"]}' % SECRET.encode(),
    b'{"history": ["\xff\xfe"]}',
    b'{"history": [1], "user_id": ["%s"]}' % SECRET.encode(),
    b'{"history": [1], "request_id": "%s!"}' % SECRET.encode(),
    b'{"%s": 1, "history": [1]}' % SECRET.encode(),
    b'{"history": "%s"}' % SECRET.encode(),
    b'{"history": [true]}',
    b'{"history": [null]}',
    b'{"history": [1.5]}',
    b'{"history": [1], "k": true, "k": {"%s": 1}}' % SECRET.encode(),
    b'{"history": [%s]}' % (b"9" * 5000),
    b'{"history": [1], "k": %s}' % (b"9" * 400),
    b"[" * 10_000 + b"]" * 10_000,
    b'{"history": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b'{"history": [%s]}' % b",".join([b"7"] * 100_000),
    b'{"history": [1], "exclude": [%s]}' % b",".join([b"7"] * 10_001),
    b'{"requests": []}',
    b'{"requests": [%s]}' % b",".join([b'{"history": [1]}'] * 65),
    b'{"requests": [{"history": [1]}, {"history": ["%s"], "k": "x"}]}' % SECRET.encode(),
    b'{"requests": [{"history": [1], "request_id": "a"}, {"history": [2], "request_id": "a"}]}',
    b"null",
    b"7",
    b'"%s"' % SECRET.encode(),
    b"[]",
    b"{}",
    b"",
    b"\x00" * 100,
    b'{"history": [1]}trailing %s' % SECRET.encode(),
]


@pytest.mark.parametrize("path", ["/v1/recommend", "/recommend", "/v1/feedback"])
def test_bad_bodies_are_refused_in_one_short_line_without_what_they_held(stub: Callable[..., Any], path: str) -> None:
    stream = io.StringIO()
    service = stub(Options(log=RequestLog(1.0, stream)))
    for body in BAD_BODIES:
        status, answer, _ = service.ask(path, body)
        assert status == 422, (body[:60], status, answer)
        assert set(answer) == {"detail"} and len(answer["detail"]) < 200, answer
        assert SECRET not in json.dumps(answer)
    assert service.ask("/livez")[0] == 200
    lines = stream.getvalue()
    assert SECRET not in lines and "Traceback" not in lines and len(lines.splitlines()) == len(BAD_BODIES) + 1


@pytest.mark.parametrize("place", range(6))
def test_what_is_wrong_everywhere_is_described_once(place: int) -> None:
    """All that is wrong would be described before the first is named: half a second for each 30,000 values."""
    name, (path, _, bodies) = list(heavy_bodies(range(19), 1).items())[place]
    kinds = {"1,000 invalid events": FeedbackBody, "64 requests of invalid ids": BatchBody}
    try:
        kinds.get(name, RecommendBody).model_validate(bodies[0])
    except ValidationError as error:
        assert error.error_count() <= 10, "a few members of a union, and required fields"
    else:
        pytest.fail(f"{path}: {name}")


def test_a_body_holds_so_many_values_whatever_it_is_of() -> None:
    full = {"history": [1] * 10_000, "exclude": [2] * 10_000, "include": [3] * 10_000, "k": 5}
    assert parsed(json.dumps(full).encode()) == full
    for many in (b"[%s1]" % (b"1," * 32_001), b"{%s}" % b",".join(b'"%d": 1' % n for n in range(40_000))):
        with pytest.raises(BadRequest, match=r"^the body holds more than 32,000 values$"):
            parsed(many)


@pytest.mark.parametrize("name", heavy_bodies(range(19), 1))
def test_bodies_at_their_bounds_do_not_hold_up_others(stub: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """A short version of row 30 of docs/reliability.md."""
    service = stub(Options(limits=QUICK, exposures=LocalExposureLog(tmp_path / "log")))
    path, clients, bodies = heavy_bodies(range(19), 4)[name]
    contents, waits = [json.dumps(body) for body in bodies], list[float]()
    with ThreadPoolExecutor(clients) as pool:
        sent = [pool.submit(service.ask, path, contents[number % len(contents)]) for number in range(clients)]
        while not all(one.done() for one in sent) or not waits:
            started = time.perf_counter()
            assert service.ask("/livez")[0] == 200
            assert service.ask("/v1/recommend", {"history": [1]})[0] == 200
            waits.append(time.perf_counter() - started)
    fine = {422} if "invalid" in name or "unknown" in name else {200, 503}
    assert {one.result()[0] for one in sent} <= fine
    assert max(waits) < 2.0  # of a busy machine; they were 20 s where all that is wrong was described


def test_a_large_body_whose_time_is_over_before_its_turn_is_not_read(
    stub: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = stub(Options(limits=replace(QUICK, deadline_seconds=0.2)))
    first, go = threading.Event(), threading.Event()
    read = list[int]()

    def slow(body: bytes) -> Any:
        if len(body) > BYTES_IN_LOOP:
            read.append(len(body))
            first.set()
            assert go.wait(10)
        return parsed(body)

    monkeypatch.setattr(routes, "parsed", slow)
    large = {"history": [1] * 5000}
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(service.ask, "/v1/recommend", large)
        assert first.wait(10)
        two = pool.submit(service.ask, "/v1/recommend", large)
        time.sleep(0.4)
        assert service.ask("/v1/recommend", {"history": [1]})[0] == 200, "small ones do not wait for large ones"
        go.set()
        status, answer, headers = two.result()
    assert (status, headers["retry-after"]) == (503, "1") and "too many" in answer["detail"]
    assert one.result()[0] == 503 and len(read) == 1


def test_several_lists_in_a_body_leave_room_for_who_asks_for_one(stub: Callable[..., Any]) -> None:
    service = stub(Options(limits=replace(QUICK, deadline_seconds=2.0)))
    queue = service.app.queue
    service.recommender.go.clear()
    with ThreadPoolExecutor(65) as pool:
        waiting = [pool.submit(service.ask, "/v1/recommend", {"history": [1]}) for _ in range(64)]
        while queue.waiting < 64:
            time.sleep(0.005)
        queue.wait_seconds = lambda more=1: 1.2  # between 0.8 of half the deadline and 0.8 of all of it
        assert service.ask("/v1/recommend", {"requests": [{"history": [1]}] * 2})[0] == 503
        waiting.append(pool.submit(service.ask, "/v1/recommend", {"history": [1]}))
        while queue.waiting < 65:
            time.sleep(0.005)
        service.recommender.go.set()
        assert {one.result()[0] for one in waiting} == {200}


def test_a_field_of_the_other_route_is_told_from_one_of_none(stub: Callable[..., Any]) -> None:
    service = stub()
    said = service.ask("/recommend", {"history": [1], "exclude": [2]})[1]["detail"]
    assert said == "exclude: /recommend has no such field; POST /v1/recommend has"
    assert service.ask("/recommend", {"history": [1], "exclud": [2]})[1]["detail"] == "exclud: there is no such field"


def test_a_large_body_is_refused_by_what_it_announces(stub: Callable[..., Any]) -> None:
    service = stub()
    client = service.raw(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
    assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    client = service.raw(
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
    )
    assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_ten_megabytes_that_are_sent_all_the_same_see_the_refusal(stub: Callable[..., Any]) -> None:
    """The connection is not reset under the answer."""
    service = stub()
    for _ in range(3):
        status, answer, headers = service.ask("/recommend", b" " * 10_000_000)
        assert (status, headers["connection"]) == (413, "close") and "1,000,000 bytes" in answer["detail"]


def test_a_chunked_body_without_end_is_cut_where_it_is_too_large(stub: Callable[..., Any]) -> None:
    service = stub()
    head = (
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    client = service.raw(head)
    sent = 0
    try:
        while sent < 50_000_000:
            client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent += 65536
    except OSError:
        pass
    assert sent < 50_000_000
    assert b"HTTP/1.1 413 " in client.recv(1000)


def test_stalled_bodies_get_408_and_idle_connections_are_closed(
    stub: Callable[..., Any], whole: Callable[..., bytes]
) -> None:
    service = stub(Options(limits=QUICK))
    half = service.raw(post(b"x" * 100)[:-50])
    used = service.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert whole(used).startswith(b"HTTP/1.1 200 ")
    started = time.monotonic()
    for _ in range(2):  # a byte now and then does not help
        time.sleep(0.1)
        half.sendall(b"x")
    assert read_all(half).startswith(b"HTTP/1.1 408 ") and read_all(used) == b""
    assert time.monotonic() - started < 5
    assert 'adagrpo_refused_total{why="time"} 1.0' in service.ask("/metrics")[1]


def test_a_head_that_comes_in_pieces_after_a_large_body_is_no_large_one(
    stub: Callable[..., Any], whole: Callable[[socket.socket], bytes]
) -> None:
    service = stub(Options(limits=Limits(grace_seconds=0.0)))
    large, small = post(b'{"history": [%s]}' % b",".join([b"7"] * 9000 + [b" " * 40_000 + b"7"])), post(b"{}")
    head = large.index(b"{")
    with service.raw(large[:head]) as client:
        time.sleep(0.05)  # the body comes apart from its head
        client.sendall(large[head:])
        assert whole(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(small[:30])
        time.sleep(0.05)
        client.sendall(small[30:])
        assert whole(client).startswith(b"HTTP/1.1 422 ")


CHUNKED = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 1000),
        (CHUNKED + b"0\r\n", b"X-A: a\r\n" * 100),
        (CHUNKED + b"0\r\nX-A: ", b"a" * 1000),
        (CHUNKED + b"1;", b"a" * 1000),
    ],
    ids=["head", "trailers", "one trailer", "chunk extension"],
)
def test_what_is_no_body_is_bounded_too(stub: Callable[..., Any], head: bytes, piece: bytes) -> None:
    """Trailers and chunk extensions were kept without end, and asked for no token."""
    service = stub()
    client, sent = service.raw(head), 0
    with suppress(OSError):
        while sent < 4_000_000:
            client.sendall(piece)
            sent += len(piece)
            time.sleep(0)
    assert sent < 4_000_000
    assert service.ask("/livez")[0] == 200


def test_connections_that_say_nothing_shut_nobody_out(stub: Callable[..., Any]) -> None:
    service = stub()
    silent = [service.raw() for _ in range(200)]
    slow = [service.raw(b"GET /livez HTTP/1.1\r\nX: ") for _ in range(200)]
    assert service.ask("/v1/recommend", {"history": [1]})[0] == 200
    for client in silent + slow:
        client.close()


def test_without_a_token_the_service_answers_to_its_own_names_alone(stub: Callable[..., Any]) -> None:
    """A page of another site may have a name that leads to this machine."""
    service = stub(Options(limits=QUICK, hosts=OWN_NAMES))
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"):
        assert service.ask("/livez", host=host)[0] == 200, host
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert service.ask("/v1/recommend", {"history": [1]}, host=host)[0] == 400, host


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET * HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_4xx_and_the_connection_is_closed(stub: Callable[..., Any], content: bytes) -> None:
    service = stub(Options(limits=QUICK))
    answer = read_all(service.raw(content))
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert service.ask("/livez")[0] == 200


def test_two_lengths_of_one_body_are_refused_and_what_follows_is_not_read(stub: Callable[..., Any]) -> None:
    service = stub(Options(limits=QUICK))
    head = CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n"
    answer = read_all(service.raw(head + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1 ") == 1


def test_an_upgrade_is_answered_as_if_it_were_none(stub: Callable[..., Any]) -> None:
    service = stub(Options(limits=QUICK))
    client = service.raw(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert read_all(client).startswith(b"HTTP/1.1 200 ")


def test_requests_one_after_the_other_without_waiting_are_all_answered(stub: Callable[..., Any]) -> None:
    service = stub()
    client = service.raw(
        post(b'{"history": [1], "k": 1}') * 5 + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert read_all(client).count(b"HTTP/1.1 200 ") == 6


def test_a_defect_is_told_as_one_and_logged_without_what_was_asked(
    stub: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    service = stub()
    status, answer, _ = service.ask("/v1/recommend", {"history": [19], "user_id": SECRET})
    assert status == 500 and answer == {"detail": "a defect of the service; it was logged"}
    assert service.ask("/v1/recommend", {"history": [1]})[0] == 200
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["defect", "request"]
    assert lines[0]["type"] == "RuntimeError" and "bear" not in json.dumps(lines) and SECRET not in json.dumps(lines)


def test_paths_methods_and_types_that_are_not_there(stub: Callable[..., Any]) -> None:
    service = stub()
    assert service.ask(f"/{SECRET}") == (404, {"detail": "no such route"}, service.ask("/nothing")[2])
    assert service.ask("/recommend")[0] == 405 and service.ask("/livez", {})[0] == 405
    assert service.ask("/v1/items/%F0%28%8C%28")[0] == 404 and service.ask("/v1/items/" + "9" * 5000)[0] == 404
    status, answer, _ = service.ask("/recommend", "history=1", content_type="application/x-www-form-urlencoded")
    assert status == 415 and "application/json" in answer["detail"]


def test_random_bytes_put_into_requests_never_make_a_5xx_or_a_hang(stub: Callable[..., Any]) -> None:
    """A short version of row 10 of docs/reliability.md."""
    service = stub(Options(limits=QUICK))
    draw = random.Random(0)
    whole = post(b'{"history": [1, "2"], "k": 3, "exclude": [4], "user_id": "%s"}' % SECRET.encode())
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        client = service.raw(bytes(content) + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = read_all(client)
        assert b"HTTP/1.1 5" not in answer and SECRET.encode() not in answer
    assert service.app.queue.waiting == 0
