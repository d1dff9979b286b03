"""Row 30: bodies as large as they may be, full of what is invalid or of all that is valid, do not hold up others.

While clients send them, each again when it is answered, others ask for /livez and for a list on new connections.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from adagrpo.serving.schemas import LONGEST_BATCH, LONGEST_HISTORY, MOST_VALUES
from benchmarks.reliability.clients import make_run, memory, served
from benchmarks.reliability.findings import Finding
from benchmarks.wire import load

__all__ = ["heavy", "heavy_bodies"]

SECONDS = 5.0  # of each kind of body
INVALID, VALID = 8, 32  # clients that send at a time
MOST_MB, LIVE_SECONDS, DEADLINE = 50.0, 0.2, 2.0
ASKED, TOLD = "/v1/recommend", "/v1/feedback"


def heavy(work: Path) -> Finding:
    """Send each kind of body for a while."""
    run, bodies = make_run(work)
    asked = [json.loads(line) for line in bodies.read_text(encoding="utf-8").splitlines()]
    items = sorted({item for body in asked for item in body["history"]})
    said, whole = [], True
    with served(run, "--exposures", str(work / "log"), "--exclude-history") as (port, process):
        load(port, bodies, 5)  # what grows by serving has grown
        for name, (path, clients, contents) in heavy_bodies(items).items():
            before, file = memory(process.pid), work / "heavy.jsonl"
            file.write_text("".join(json.dumps(content) + "\n" for content in contents), encoding="utf-8")
            sending = threading.Thread(
                target=load, args=(port, file, SECONDS), kwargs={"clients": clients, "path": path}
            )
            live, lists = _Asking(port, "/livez", None, sending), _Asking(port, ASKED, json.dumps(asked[0]), sending)
            for thread in (sending, live, lists):
                thread.start()
            for thread in (sending, live, lists):
                thread.join()
            grown, came = memory(process.pid) - before, lists.statuses[200]
            count = sum(lists.statuses.values())
            said.append(
                f"{clients} clients with {name}: /livez {1000 * live.slowest:.0f} ms, a list"
                f" {1000 * lists.slowest:.0f} ms at most, {came:,} of {count:,} came, {grown:+.0f} MB"
            )
            whole = whole and live.slowest <= LIVE_SECONDS and set(live.statuses) == {200}
            whole = whole and lists.slowest <= DEADLINE and came == count and grown <= MOST_MB
    return Finding(30, "; ".join(said), whole)


def heavy_bodies(items: Sequence[int | str], kinds: int = 8) -> dict[str, tuple[str, int, list[object]]]:
    """By its name each kind of body: the path, how many clients send it at a time, and bodies of that kind."""
    known, others = itertools.cycle(items), (f"no-{number}" for number in itertools.count())

    def ids(count: int, names: Iterator[int | str] = known) -> list[int | str]:
        return list(itertools.islice(names, count))

    def filtered() -> object:
        allowed = [*ids(len(items) // 2), *ids(LONGEST_HISTORY - len(items) // 2, others)]
        return {"history": ids(LONGEST_HISTORY), "include": allowed, "exclude": ids(LONGEST_HISTORY, others)}

    def events() -> object:
        return {"events": [{"request_id": name, "item_id": 1, "kind": "click"} for name in ids(1000, others)]}

    each = MOST_VALUES // LONGEST_BATCH - 1
    invalid: dict[str, tuple[str, object]] = {
        "64 requests of invalid ids": (ASKED, {"requests": [{"history": [[]] * 3800}] * LONGEST_BATCH}),
        "a history of invalid ids": (ASKED, {"history": [[]] * LONGEST_HISTORY}),
        "a filter of invalid ids": (ASKED, {"history": [], "exclude": [{}] * LONGEST_HISTORY}),
        "unknown fields": (ASKED, dict.fromkeys(map(str, ids(30_000, others)), 1)),
        "unknown groups": (ASKED, {"history": [], "include": dict.fromkeys(map(str, ids(30_000, others)), "")}),
        "1,000 invalid events": (TOLD, {"events": [{"kind": []}] * 1000}),
    }
    valid: dict[str, tuple[str, list[object]]] = {
        "10,000 ids": (ASKED, [{"history": ids(LONGEST_HISTORY)} for _ in range(kinds)]),
        "10,000 ids, and 20,000 in filters": (ASKED, [filtered() for _ in range(kinds)]),
        "64 requests": (ASKED, [{"requests": [{"history": ids(each)}] * LONGEST_BATCH} for _ in range(kinds)]),
        "1,000 events": (TOLD, [events() for _ in range(50 * kinds)]),
    }
    return {name: (path, INVALID, [body]) for name, (path, body) in invalid.items()} | {
        name: (path, VALID, bodies) for name, (path, bodies) in valid.items()
    }


class _Asking(threading.Thread):
    """Asks for the same, on a new connection each time, as long as another thread goes on."""

    def __init__(self, port: int, path: str, body: str | None, other: threading.Thread) -> None:
        super().__init__()
        self.port, self.path, self.body, self.other = port, path, body, other
        self.slowest, self.statuses = 0.0, Counter[int]()  # 0: no answer

    def run(self) -> None:
        while self.other.is_alive():
            started = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                method = "GET" if self.body is None else "POST"
                connection.request(method, self.path, self.body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                self.statuses[response.status] += 1
            except (OSError, http.client.HTTPException):
                self.statuses[0] += 1
            finally:
                connection.close()
            self.slowest = max(self.slowest, time.perf_counter() - started)
            time.sleep(0.02)
