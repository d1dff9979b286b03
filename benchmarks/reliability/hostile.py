"""Row 26: clients that mean harm, against the service itself and through the proxy that stands before it.

While each attack goes on, a client asks for a list every tenth of a second, on a new connection each time.
"""

from __future__ import annotations

import http.client
import re
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from adagrpo.serving.draining import raise_open_files
from benchmarks.reliability.clients import make_run, memory, served
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.proxy import proxied
from benchmarks.wire import load

__all__ = ["hostile", "hostile_proxied"]

TOKEN = "0123456789abcdef0123456789abcdef"
SECONDS = 8.0  # of an attack
SILENT, SCRAPERS = 1500, 64
MOST_MB, MOST_SECONDS = 50.0, 1.0
CHUNKED = b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "trailers": (CHUNKED + b"0\r\n", b"".join(b"X-%05d: a\r\n" % number for number in range(20_000))),
    "one trailer": (CHUNKED + b"0\r\nX-Long: ", b"a" * 262_144),
    "a chunk extension": (CHUNKED + b"5;", b"a" * 262_144),
    "a head": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: ", b"a" * 262_144),
}
AFTER = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"  # must not be answered
HEAD = (
    f"POST /v1/recommend HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nHost: localhost\r\n"
    "Content-Type: application/json\r\n"
).encode()
SMUGGLED = (
    HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + AFTER,
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + AFTER,
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345" + AFTER,
    HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + AFTER,
    HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + AFTER,
    HEAD + b"Content-Length: +5\r\n\r\n12345" + AFTER,
    HEAD + b"Content-Length : 5\r\n\r\n12345" + AFTER,
    HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + AFTER,
    HEAD + b"Content-Length: 0x5\r\n\r\n12345" + AFTER,
)


@dataclass
class Target:
    """Where clients ask, and the processes whose memory is looked at."""

    port: int
    processes: Sequence[int]
    body: str
    waits: list[float] = field(default_factory=list)  # seconds that lists took under the present attack
    failed: int = 0  # lists that did not come

    def memory(self) -> float:
        """MB of all processes."""
        return sum(memory(process) for process in self.processes)

    def ask(self) -> None:
        """Ask for a list as anybody may, and note how long it takes."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", "Host": "localhost"}
        try:
            connection.request("POST", "/v1/recommend", self.body, headers)
            response = connection.getresponse()
            response.read()
            self.failed += response.status != 200
        except (OSError, http.client.HTTPException):
            self.failed += 1
        finally:
            connection.close()
        self.waits.append(time.perf_counter() - started)


def hostile(work: Path) -> Finding:
    """Attack the service itself."""
    return _attacked(work, False)


def hostile_proxied(work: Path) -> Finding:
    """Attack through nginx, with the configuration that deploy/ ships."""
    return _attacked(work, True)


def _attacked(work: Path, through: bool) -> Finding:
    raise_open_files()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * SILENT:
        raise RuntimeError(f"open files are limited below {2 * SILENT}")
    run, bodies = make_run(work)
    tokens = work / "tokens"
    tokens.write_text(f"{TOKEN}\n", encoding="utf-8")
    said, whole = [], True
    with _target(run, bodies, work / "nginx", through, "--token-file", str(tokens)) as target:
        for _ in range(20):
            target.ask()
        for name, attack in _attacks().items():
            target.waits, target.failed, before = [], 0, target.memory()
            grown, found = _under(target, attack, before)
            slowest = max(target.waits)
            said.append(f"{name}: {grown:+.0f} MB, slowest list {slowest:.2f} s{found}")
            if target.failed:
                said[-1] += f", {target.failed} of {len(target.waits)} lists did not come"
            whole = whole and grown <= MOST_MB and slowest <= MOST_SECONDS and not target.failed
        smuggled = sum(_answers(target.port, request) > 1 for request in SMUGGLED)
    with _target(run, bodies, work / "nginx-without", through) as target:
        strange = sum(_status(target.port, host) not in (400, 421) for host in ("evil.example", "evil.example:80", "a"))
        own = _status(target.port, "localhost")
    said.append(f"{smuggled} of {len(SMUGGLED)} smuggled requests were answered")
    said.append(f"without a token, {strange} of 3 requests under a foreign Host were let in")
    figure = f"{'through nginx' if through else 'the service itself'}: " + "; ".join(said)
    return Finding(26, figure, whole and not smuggled and not strange and own == 200)


@contextmanager
def _target(run: Path, bodies: Path, folder: Path, through: bool, *options: str) -> Iterator[Target]:
    """The service, or the proxy before it."""
    body = bodies.read_text(encoding="utf-8").splitlines()[0]
    with served(run, *options) as (port, process):
        if not options:
            load(port, bodies, 2, clients=16)
        if not through:
            yield Target(port, [process.pid], body)
            return
        with proxied(folder, [port]) as (front, processes):
            yield Target(front, [process.pid, *processes], body)


def _under(target: Target, attack: Callable[[int], str], before: float) -> tuple[float, str]:
    """How much memory grew at most while an attack went on, and what the attack says of itself."""
    found, most = list[str](), before
    attacker = threading.Thread(target=lambda: found.append(attack(target.port)))
    attacker.start()
    while attacker.is_alive():
        target.ask()
        most = max(most, target.memory())
        time.sleep(0.1)
    return most - before, found[0] if found else ", the attack itself failed"


def _attacks() -> dict[str, Callable[[int], str]]:
    """What each attack is called, and what carries it out on a port."""
    endless = {
        f"3 that send {name} without end": lambda port, head=head, piece=piece: _flood(port, head, piece)
        for name, (head, piece) in ENDLESS.items()
    }
    return endless | {
        f"{SILENT:,} silent sockets": lambda port: _held(port, SILENT, b""),
        f"{SILENT:,} heads of a byte a second": lambda port: _held(port, SILENT, b"GET /livez HTTP/1.1\r\nX: "),
        f"{SCRAPERS} that ask for /metrics at a time": _scrape,
    }


def _flood(port: int, head: bytes, piece: bytes) -> str:
    """Three connections that send without end, and begin again when they are cut off."""
    until, sent = time.monotonic() + SECONDS, [0, 0, 0]

    def send(number: int) -> None:
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as client:
                client.sendall(head)
                while time.monotonic() < until:
                    client.sendall(piece)
                    sent[number] += len(piece)
            time.sleep(0.05)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return f" ({sum(sent) / 1e6:,.0f} MB sent)"


def _held(port: int, count: int, begun: bytes) -> str:
    """Connections that are held, with a byte more of a head each second."""
    clients = []
    for _ in range(count):
        with suppress(OSError):
            clients.append(socket.create_connection(("127.0.0.1", port), timeout=2))
            clients[-1].sendall(begun)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        for client in clients if begun else ():
            with suppress(OSError):
                client.send(b"a")
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLIN | select.POLLRDHUP)
    open_still = len(clients) - len(poll.poll(0))
    for client in clients:
        client.close()
    return f", {open_still:,} of them open after {SECONDS:.0f} s"


def _scrape(port: int) -> str:
    """Ask for the figures, all at a time and again and again."""
    until, statuses = time.monotonic() + SECONDS, list[int]()

    def ask() -> None:
        while time.monotonic() < until:
            statuses.append(_status(port, "localhost", "/metrics"))

    scrapers = [threading.Thread(target=ask) for _ in range(SCRAPERS)]
    for scraper in scrapers:
        scraper.start()
    for scraper in scrapers:
        scraper.join()
    return f", {len(statuses):,} answers of which {statuses.count(200):,} are figures"


def _status(port: int, host: str, path: str = "/health") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host, "Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _answers(port: int, request: bytes) -> int:
    """How many answers a client gets that sends one request, with another one hidden in it."""
    with socket.create_connection(("127.0.0.1", port), timeout=1.5) as client:
        client.sendall(request)
        answer = b""
        with suppress(OSError):
            while piece := client.recv(65536):
                answer += piece
    return len(re.findall(rb"HTTP/1\.1 \d", answer))
