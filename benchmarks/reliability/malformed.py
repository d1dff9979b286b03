"""Row 10: requests that are malformed in every way known: no 5xx, no hang, no growth, a short reason.

Row 14: every route with a token set.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.reliability.clients import make_run, memory, served
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.proxy import proxied
from benchmarks.wire import as_request, load

__all__ = ["malformed", "malformed_proxied", "token", "token_proxied"]

SECRET = "alice-7731"
COUNT = 10_000
FINE = (200, 505)  # a version of HTTP that nginx does not speak
CLOSED = 900  # at once and without an answer, as nginx does where the first line names no version of HTTP
TOKEN = "0123456789abcdef0123456789abcdef"
ATOMS: tuple[object, ...] = (None, True, -1, 0, 2**70, 1.5, "", SECRET, "\0", "é" * 50, [], {}, [[]], {SECRET: 1})
FIELDS = (
    "history",
    "k",
    "exclude_history",
    "exclude",
    "include",
    "user_id",
    "request_id",
    "requests",
    "events",
    SECRET,
)
PATHS = ("/v1/recommend", "/recommend", "/v1/feedback")
WORDS = ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', '"\\udfff"', "9" * 5000)


def malformed(work: Path) -> Finding:
    """Send `COUNT` requests, with lists that are well asked for before and after."""
    run, bodies = make_run(work)
    with served(run) as (port, process):
        return _malformed(port, [process.pid], bodies)


def malformed_proxied(work: Path) -> Finding:
    """The same through the proxy."""
    run, bodies = make_run(work)
    with served(run) as (port, process), proxied(work / "nginx", [port]) as (front, proxy):
        found = _malformed(front, [process.pid, *proxy], bodies)
    return replace(found, figure=f"through nginx: {found.figure}")


def _malformed(port: int, processes: list[int], bodies: Path) -> Finding:
    load(port, bodies, 10, clients=16)  # what grows by serving has grown
    before = sum(map(memory, processes))
    statuses, slowest, leaks = _send(port, COUNT)
    grown = sum(map(memory, processes)) - before
    after = load(port, bodies, 5, clients=16)
    errors = sum(
        count for status, count in statuses.items() if not 400 <= status < 500 and status not in (*FINE, CLOSED)
    )
    shown = ", ".join(
        f"{'closed' if status == CLOSED else status} {count:,}" for status, count in sorted(statuses.items())
    )
    figure = (
        f"{COUNT:,} malformed requests (random fields and bytes, NaN, lone surrogates, depth 10,000, histories of"
        f" 100,000, bodies of 10 MB, chunks): {shown}; {errors} with a 5xx, cut off or late (slowest {slowest:.1f} s);"
        f" {leaks} reasons that are long or repeat what was sent; memory {grown:+.0f} MB; afterwards"
        f" {after.answered:,} of {after.answered + after.refused + sum(after.others.values()):,} lists come"
    )
    return Finding(10, figure, not errors and not leaks and grown <= 50 and not after.others)


def token(work: Path) -> Finding:
    """Ask every route that /openapi.json names, with the token, without, and with wrong ones."""
    with _guarded(work) as port:
        return _token(port)


def token_proxied(work: Path) -> Finding:
    """The same through the proxy."""
    with _guarded(work) as port, proxied(work / "nginx", [port]) as (front, _):
        found = _token(front)
    return replace(found, figure=f"through nginx: {found.figure}")


@contextmanager
def _guarded(work: Path) -> Iterator[int]:
    """The port of a service with a token."""
    run, _ = make_run(work)
    file = work / "tokens"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    with served(run, "--token-file", str(file)) as (port, _):
        yield port


def _token(port: int) -> Finding:
    wrong = ("", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0", f"Basic {TOKEN}", f"bearer{TOKEN}")
    described = json.loads(_ask(port, _get("/openapi.json", f"Bearer {TOKEN}"))[1])
    routes = [(path, method) for path, methods in described["paths"].items() for method in methods]
    refused = let_in = opened = 0
    for path, method in routes:
        open_to_all = path in ("/livez", "/readyz")
        for authorization in wrong:
            status = _ask(port, _any(method, path, authorization))[0]
            refused += not open_to_all and status == 401
            opened += open_to_all and status == 200
        let_in += _ask(port, _any(method, path, f"Bearer {TOKEN}"))[0] != 401
    guarded = len(wrong) * (len(routes) - 2)
    figure = (
        f"{len(routes)} routes: without the token or with a wrong one {refused} of {guarded} requests get 401,"
        f" {opened} of {2 * len(wrong)} to liveness and readiness are answered; with it {let_in} of {len(routes)} pass;"
        " 127.0.0.1 if no host is given; digests compared by hmac.compare_digest; users in logs as HMAC-SHA256"
    )
    return Finding(14, figure, refused == guarded and opened == 2 * len(wrong) and let_in == len(routes))


def _send(port: int, count: int) -> tuple[Counter[int], float, int]:
    """Statuses (0: none), seconds of the slowest, and reasons that are long or hold the secret."""
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda seed: _judged(port, seed), range(count)))
    statuses = Counter(status for status, _, _ in results)
    return statuses, max(seconds for _, seconds, _ in results), sum(bad for _, _, bad in results)


def _judged(port: int, seed: int) -> tuple[int, float, bool]:
    draw = random.Random(seed)
    request = b"".join(KINDS[seed % len(KINDS)](draw))
    started = time.perf_counter()
    status, answer = _ask(port, request)
    seconds = time.perf_counter() - started
    if not status and seconds < 1 and b" HTTP/" not in request.partition(b"\r")[0]:
        status = CLOSED
    return status, seconds, status != 200 and (len(answer) > 400 or SECRET.encode() in answer)


def _ask(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body; 0 if there is none within 30 seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        with suppress(OSError):  # refused before all was sent
            client.sendall(request)
        answer = bytearray()
        with suppress(OSError):
            while b"\r\n\r\n" not in answer or len(answer) < _length(answer):
                piece = client.recv(65536)
                if not piece:
                    break
                answer += piece
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    return (int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0), body


def _length(answer: bytearray) -> int:
    """Bytes of an answer whose head is there."""
    head, _, _ = bytes(answer).partition(b"\r\n\r\n")
    length = head.lower().split(b"content-length: ")
    return len(head) + 4 + (int(length[1].split(b"\r\n")[0]) if len(length) > 1 else 0)


def _get(path: str, authorization: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n".encode()


def _any(method: str, path: str, authorization: str) -> bytes:
    path = path.replace("{item_id}", "1")
    if method == "get":
        return _get(path, authorization)
    return as_request({}, path, Authorization=authorization)


# ---------------------------------------------------------------- kinds of requests


def _posted(path: str, body: bytes) -> Iterator[bytes]:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    yield f"{head}Content-Length: {len(body)}\r\n\r\n".encode()
    yield body


def _value(draw: random.Random, depth: int = 0) -> object:
    if depth < 3 and draw.random() < 0.3:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if depth < 3 and draw.random() < 0.2:
        return {draw.choice(FIELDS): _value(draw, depth + 1) for _ in range(draw.randrange(3))}
    return draw.choice(ATOMS)


def _fields(draw: random.Random) -> Iterator[bytes]:
    content = {draw.choice(FIELDS): _value(draw) for _ in range(draw.randint(1, 5))} | {"no such field": 1}
    return _posted(draw.choice(PATHS), json.dumps(content).encode())


def _numbers(draw: random.Random) -> Iterator[bytes]:
    word = draw.choice(WORDS)
    bodies = ('{"history": [1, %s]}', '{"history": [1], "k": %s}', '{"history": [1], "user_id": [%s]}', "%s")
    return _posted(draw.choice(PATHS), (draw.choice(bodies) % word).encode())


def _deep(draw: random.Random) -> Iterator[bytes]:
    left, right = draw.choice((("[", "]"), ('{"a":', "}")))
    return _posted(draw.choice(PATHS), (left * 10_000 + "1" + right * 10_000).encode())


def _bytes(draw: random.Random) -> Iterator[bytes]:
    body = bytearray(b'{"history": ["%s"], "k": 5, "z": 1}' % SECRET.encode())
    for _ in range(draw.randint(1, 6)):
        body[draw.randrange(len(body))] = draw.randrange(128, 256)
    return _posted(draw.choice(PATHS), bytes(body))


def _long(draw: random.Random) -> Iterator[bytes]:
    if draw.random() < 0.8:
        return _fields(draw)  # long ones take the time of many
    return _posted(draw.choice(PATHS[:2]), b'{"history": [%s]}' % b",".join([b"1234567"] * 100_000))


def _large(draw: random.Random) -> Iterator[bytes]:
    if draw.random() < 0.9:
        return _numbers(draw)
    return _posted(draw.choice(PATHS), b" " * 10_000_000)


def _chunks(draw: random.Random) -> Iterator[bytes]:
    yield f"POST {draw.choice(PATHS)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    yield b"Transfer-Encoding: chunked\r\n\r\n"
    for _ in range(draw.randint(1, 40)):
        yield b"10000\r\n" + b" " * 65_536 + b"\r\n"
    yield draw.choice((b"0\r\n\r\n", b"zz\r\n"))


def _heads(draw: random.Random) -> Iterator[bytes]:
    head = bytearray(
        b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Type: text/x\r\n\r\n{}"
    )
    for _ in range(draw.randint(1, 3)):
        head[draw.randrange(20)] = draw.randrange(256)
    yield bytes(head) + b"\r\n\r\n\r\n\r\n"


KINDS: tuple[Callable[[random.Random], Iterator[bytes]], ...] = (
    *(_fields, _numbers, _bytes, _fields, _numbers, _bytes, _fields, _heads, _deep, _long, _large, _chunks),
)
