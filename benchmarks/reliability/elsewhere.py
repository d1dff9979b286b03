"""Row 12, for a log elsewhere: the service writes into a real store and to a real broker, and all of them are killed.

Clients ask all the time, and ask again where they were refused or cut off, with a new request id. Meanwhile the store
is killed and started again, held up so that it does not answer, and the service is killed and started again. Every list
that a client got must be among the rows that `adagrpo collect` brings home.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from adagrpo.errors import UserError
from adagrpo.serving.exposure_kafka import KafkaSink
from adagrpo.serving.exposure_objects import ObjectSink
from adagrpo.serving.exposure_parts import parts_of, read_parts, rotate
from benchmarks.reliability.brokers import Broker, kafka, s3
from benchmarks.reliability.clients import make_run, served
from benchmarks.reliability.findings import Finding

__all__ = ["Clients", "compared", "in_kafka", "in_s3"]

CLIENTS, PAUSE = 8, 5.0  # seconds for which the store is held up
# Noida acknowledges a message before it has saved it: a plain producer of librdkafka, with acks=all and no more than
# five messages on their way, missed 30 of 1,680 acknowledged ones after noida was told to end three times.
SAVED = 3.0  # seconds after which it has saved them


class Compared(NamedTuple):
    """What clients got, held against the rows."""

    lists: int
    lost: int  # lists and clicks without a row, or with another list in it
    twice: int  # rows of a request id that was there before
    unseen: int  # rows of lists that no client got


class Clients:
    """They ask until told to stop, and click on the first item of every tenth list."""

    def __init__(self, bodies: list[str]) -> None:
        self.lists: dict[str, list[Any]] = {}  # by request id
        self.clicks: set[tuple[str, str]] = set()
        self.statuses: Counter[int] = Counter()  # 0: no answer
        self.slowest = 0.0  # seconds of an answer of 503
        self.port = 0
        self._bodies, self._stop, self._lock = bodies, threading.Event(), threading.Lock()
        self._may_ask = threading.Event()
        self._may_ask.set()
        self._threads = [threading.Thread(target=self._ask, args=[number], daemon=True) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let them finish what they are at."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def rest(self, seconds: float) -> None:
        """Have nobody ask for a while; they go on at `go_on`."""
        self._may_ask.clear()
        time.sleep(seconds)

    def go_on(self) -> None:
        """Have them ask again."""
        self._may_ask.set()

    def until(self, more: int, seconds: float = 120.0) -> None:
        """Wait until so many more lists have come."""
        end, wanted = time.monotonic() + seconds, len(self.lists) + more
        while len(self.lists) < wanted and time.monotonic() < end:
            time.sleep(0.02)

    def _ask(self, number: int) -> None:
        draw = random.Random(number)
        while not self._stop.is_set():
            self._may_ask.wait()
            status, answer, took = _call(self.port, "/v1/recommend", draw.choice(self._bodies))
            with self._lock:
                self.statuses[status] += 1
                if status == 200:
                    self.lists[answer["request_id"]] = [str(item) for item in answer["items"]]
                elif status == 503:
                    self.slowest = max(self.slowest, took)
            if status == 200 and draw.random() < 0.1:
                click = {"request_id": answer["request_id"], "item_id": answer["items"][0], "kind": "click"}
                if _call(self.port, "/v1/feedback", json.dumps(click))[0] == 200:
                    self.clicks.add((click["request_id"], str(click["item_id"])))
            elif status != 200:
                time.sleep(0.05)


def _call(port: int, path: str, body: str) -> tuple[int, dict[str, Any], float]:
    connection, began = http.client.HTTPConnection("127.0.0.1", port, timeout=20), time.monotonic()
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), time.monotonic() - began
    except (OSError, http.client.HTTPException, ValueError):
        return 0, {}, 0.0
    finally:
        connection.close()


def compared(clients: Clients, log: Path, repeated: int = 0) -> Compared:
    """Hold what clients got against a log that was collected into a folder; `repeated` rows were dropped there."""
    rotate(log)
    shown, events = read_parts(parts_of(log))
    rows = dict(zip(shown["request_id"].to_list(), shown["slate"].to_list(), strict=True))
    clicks = {*zip(events["request_id"].to_list(), events["item"].to_list(), strict=True)}
    lost = sum(rows.get(name) != items for name, items in clients.lists.items()) + len(clients.clicks - clicks)
    return Compared(len(clients.lists), lost, len(shown) - len(rows) + repeated, len(rows.keys() - clients.lists))


def in_s3(work: Path, lists: int = 3000) -> Finding:
    """The log in a bucket of SeaweedFS."""
    store_at = work / "store"
    store_at.mkdir()
    with s3(store_at) as (store, client):
        client.create_bucket(Bucket="shop")
        given = {"endpoint_url": store.environment["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}
        given |= {"aws_access_key_id": "logger", "aws_secret_access_key": store.environment["AWS_SECRET_ACCESS_KEY"]}
        refused = [
            _refused(ObjectSink("shop", **given | {"aws_secret_access_key": "wrong"}), "SignatureDoesNotMatch"),
            _refused(ObjectSink("nowhere", **given), "NoSuchBucket"),
            _refused(ObjectSink("shop", **given | {"endpoint_url": "http://127.0.0.1:9"}), "Could not connect"),
        ]
        return _measured(work, "s3://shop/log", store, lists, refused, "SeaweedFS' S3", 0.0)


def in_kafka(work: Path, lists: int = 3000) -> Finding:
    """The log in topics of noida, a broker that speaks Kafka's protocol."""
    broker_at = work / "broker"
    broker_at.mkdir()
    with kafka(broker_at) as (broker, address):
        refused = [_refused(KafkaSink({"bootstrap.servers": "127.0.0.1:9", "log_level": 0}, seconds=1), "Kafka, topic")]
        return _measured(work, f"kafka://{address}/log", broker, lists, refused, "noida's Kafka", SAVED)


def _refused(sink: ObjectSink | KafkaSink, reason: str) -> bool:
    """Whether what `serve` asks first is refused for a reason."""
    try:
        sink.check()
    except UserError as error:
        return reason in str(error)
    finally:
        sink.close()
    return False


def _measured(
    work: Path, address: str, store: Broker, lists: int, refused: list[bool], name: str, rest: float
) -> Finding:
    """Carry it out; clients `rest` for so many seconds before the store is killed."""
    run, bodies = make_run(work) if not (work / "run").exists() else (work / "run", work / "bodies.jsonl")
    clients = Clients(bodies.read_text(encoding="utf-8").splitlines())
    log, counts = work / "log", dict[str, int]()

    def serve(happens: Callable[[subprocess.Popen[str]], None]) -> int:
        options = ("--exposures", address, "--quiet")
        with served(run, *options, **store.environment) as (port, process):
            clients.port = port
            happens(process)
            code: int = process.wait(60)
            return code

    def store_fails(process: subprocess.Popen[str]) -> None:
        clients.until(lists // 4)
        if rest:
            clients.rest(rest)
        store.signal(signal.SIGKILL)
        clients.go_on()
        time.sleep(3)  # nothing can be logged, so nothing is sent
        store.start()
        clients.until(lists // 4)
        store.signal(signal.SIGSTOP)
        time.sleep(PAUSE)
        store.signal(signal.SIGCONT)
        clients.until(lists // 4)
        process.kill()

    def drained(process: subprocess.Popen[str]) -> None:
        counts.update(_collected(address, log, store))  # while it is written
        clients.until(lists // 4)
        process.terminate()

    serve(store_fails)
    code = serve(drained)
    clients.stop()
    for key, count in _collected(address, log, store).items():
        counts[key] += count
    found = compared(clients, log, counts["answers_repeated"])
    refusals = clients.statuses[503]
    after = f" after {rest:.0f} s in which nobody asked" if rest else ""
    figure = (
        f"{name}: killed by kill -9{after} and started again, held up for {PAUSE:.0f} s, the service killed by kill -9,"
        f" then drained, under {CLIENTS} clients: {found.lists:,} lists and {len(clients.clicks):,} clicks"
        f" acknowledged, {found.lost} of them not collected, {found.twice} rows twice, {found.unseen} rows of lists"
        f" that nobody got;"
        f" {refusals:,} answers 503 meanwhile, the slowest after {clients.slowest:.1f} s; {sum(refused)} of"
        f" {len(refused)} logs that cannot be written refused before anything is served"
    )
    other = {status for status in clients.statuses if status not in (0, 200, 503)}
    return Finding(12, figure, found.lists >= lists and not found.lost and code == 0 and all(refused) and not other)


def _collected(address: str, log: Path, store: Broker) -> dict[str, int]:
    command = [sys.executable, "-m", "adagrpo", "collect", address, "--to", str(log), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | store.environment, check=True)
    counts: dict[str, int] = json.loads(ended.stdout)
    return {name: counts[name] for name in ("answers", "answers_repeated", "feedback", "feedback_repeated")}
