"""Row 12: a service is told to end, and is killed, under load. Row 13: what it serves is exchanged under load."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from adagrpo.exposures.exposure_store import parts_of, read_parts, rotate
from benchmarks.reliability.clients import make_run, served
from benchmarks.reliability.findings import Finding
from benchmarks.reliability.proxy import free_port, proxied

__all__ = ["endings", "endings_proxied", "exchanges"]

CLIENTS = 16
LONGEST = 120.0  # seconds that a service has to answer what it should before it is killed
TOKEN = "0123456789abcdef0123456789abcdef"


def endings(work: Path, terms: int = 20, kills: int = 5, requests: int = 10_000) -> Finding:
    """Each time with a new service, of which some keep connections and some make one for each request.

    Clients do as a proxy does: they begin nothing more once readiness is 503.

    Args:
        work: an empty folder.
        terms: times that a service is told to end.
        kills: times that one is killed.
        requests: that those which are killed have answered by then, all of them together.
    """
    run, bodies = make_run(work)
    asked = bodies.read_text(encoding="utf-8").splitlines()
    log, answers = work / "log", list[str]()
    dropped = turned = 0
    codes: Counter[int] = Counter()
    for turn in range(terms):
        outcome = _under_load(run, log, asked, signal.SIGTERM, turn)
        dropped, turned = dropped + outcome["dropped"], turned + outcome["unready"]
        codes[outcome["code"]] += 1
        answers += outcome["answered"]
    killed: list[str] = []
    for turn in range(kills):
        least = requests * (turn + 1) // kills - len(killed)
        killed += _under_load(run, log, asked, signal.SIGKILL, terms + turn, least)["answered"]
    rotate(log)
    rows = Counter(read_parts(parts_of(log))[0]["request_id"].to_list())
    without = sum(rows[name] != 1 for name in (*answers, *killed))
    whole = turned == terms == codes[0] and len(killed) >= requests
    figure = (
        f"SIGTERM {terms} times: {len(answers):,} lists, {dropped} requests that were begun while it was ready were"
        f" dropped, readiness turned 503 {turned} times, status 0 {codes[0]} times; kill -9 {kills} times among"
        f" {len(killed):,} lists; {without} of {len(answers) + len(killed):,} lists without exactly one exposure row"
    )
    return Finding(12, figure, whole and not dropped and not without)


def endings_proxied(work: Path, terms: int = 20, kills: int = 5) -> Finding:
    """Two services behind the proxy, of which one at a time ends and begins again; clients know the proxy alone.

    Args:
        work: an empty folder.
        terms: times that one is told to end.
        kills: times that one is killed.
    """
    run, bodies = make_run(work)
    asked = bodies.read_text(encoding="utf-8").splitlines()
    log, ports = work / "log", [free_port(), free_port()]
    outcome: dict[str, Any] = {"answered": [], "dropped": 0, "refused": 0}
    codes: Counter[int | None] = Counter()

    def begin(port: int) -> tuple[ExitStack, subprocess.Popen[str]]:
        stack = ExitStack()
        return stack, stack.enter_context(served(run, "--port", str(port), "--exposures", str(log)))[1]

    services, stop, lock = [begin(port) for port in ports], threading.Event(), threading.Lock()
    with proxied(work / "nginx", ports) as (front, _):
        clients = [
            threading.Thread(target=_client, args=(front, asked, signal.SIGTERM, outcome, lock, stop, index))
            for index in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for turn in range(terms + kills):
            time.sleep(0.5 + random.Random(turn).random())
            stack, process = services[turn % 2]
            if turn >= terms:
                process.kill()
            stack.close()  # tells it to end, and waits
            codes[process.returncode] += 1
            services[turn % 2] = begin(ports[turn % 2])
        stop.set()
        for client in clients:
            client.join()
    for stack, _ in services:
        stack.close()
    rotate(log)
    rows = Counter(read_parts(parts_of(log))[0]["request_id"].to_list())
    without = sum(rows[name] != 1 for name in outcome["answered"])
    figure = (
        f"two processes behind nginx, one at a time told to end {terms} times and killed by kill -9 {kills} times:"
        f" {len(outcome['answered']):,} lists, {outcome['dropped']} requests were not answered,"
        f" {outcome['refused']} were refused for want of time, {without} lists without exactly one exposure row;"
        f" status 0 {codes[0]} times"
    )
    return Finding(12, figure, codes[0] == terms and not outcome["dropped"] and not without)


def exchanges(work: Path, swaps: int = 20) -> Finding:
    """Reload best and final in turn under load, once with weights that are damaged."""
    run, bodies = make_run(work)
    asked = bodies.read_text(encoding="utf-8").splitlines()
    file = work / "tokens"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    with served(run, "--token-file", str(file), "--arm", "sft", "--exclude-history") as (port, _):
        lists: dict[str, dict[str, Any]] = {}
        stop, mixed, errors, seen = threading.Event(), [0], [0], Counter[str]()

        def ask(body: str) -> dict[str, Any]:
            return _call(port, "/v1/recommend", body)[1]

        for arm in ("nll", "sft"):
            _call(port, "/v1/admin/reload", json.dumps({"arm": arm, "checkpoint": "final"}))
            answers = [ask(body) for body in asked[:50]]
            lists[answers[0]["versions"]["arm"]] = dict(zip(asked, answers, strict=False))

        def client(number: int) -> None:
            draw = random.Random(number)
            while not stop.is_set():
                body = draw.choice(asked[:50])
                status, answer = _call(port, "/v1/recommend", body)
                if status != 200:
                    errors[0] += 1
                    continue
                arm = answer["versions"]["arm"]
                seen[arm] += 1
                mixed[0] += not _same(answer, lists[arm][body])

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        done = kept = 0
        for turn in range(swaps):
            broken = turn == swaps // 2
            arm = ("nll", "sft")[turn % 2]
            weights = run / ("sft" if arm == "sft" else f"train/{arm}") / "final" / "model.safetensors"
            if broken:
                shutil.copy2(weights, work / "whole")
                content = bytearray(weights.read_bytes())
                content[len(content) // 2] ^= 1
                weights.write_bytes(content)
            status, said = _call(port, "/v1/admin/reload", json.dumps({"arm": arm, "checkpoint": "final"}))
            if broken:
                kept += status == 409 and "model.safetensors" in said["detail"]
                shutil.copy2(work / "whole", weights)
            else:
                done += status == 200 and said["versions"]["arm"] == f"{arm}/final"
        stop.set()
        for thread in threads:
            thread.join()
    figure = (
        f"{done} of {swaps - 1} exchanges under load, the damaged model refused with its file named and the old one"
        f" kept {kept} of 1 times; {sum(seen.values()):,} lists ({dict(seen)}): {mixed[0]} that are not the list of"
        f" the version they name, {errors[0]} errors"
    )
    return Finding(13, figure, done == swaps - 1 and kept == 1 and not mixed[0] and not errors[0] and len(seen) == 2)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal in what bfloat16 cannot move: most items, and scores to 0.1."""
    shared = {*one["items"]} & {*other["items"]}
    scores = dict(zip(one["items"], one["scores"], strict=True))
    close = [
        abs(scores[item] - score) < 0.1
        for item, score in zip(other["items"], other["scores"], strict=True)
        if item in scores
    ]
    return len(shared) >= 7 and all(close)


def _call(port: int, path: str, body: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    content: dict[str, Any] = json.loads(response.read())
    connection.close()
    return response.status, content


def _under_load(run: Path, log: Path, asked: list[str], number: int, turn: int, least: int = 0) -> dict[str, Any]:
    """Ask with `CLIENTS`, send a signal once `least` are answered, and see what became of each that was begun."""
    outcome: dict[str, Any] = {"answered": [], "dropped": 0, "refused": 0, "unready": 0}
    lock, told = threading.Lock(), threading.Event()
    with served(run, "--exposures", str(log)) as (port, process):
        clients = [
            threading.Thread(target=_client, args=(port, asked, number, outcome, lock, told, index))
            for index in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        until = time.monotonic() + LONGEST
        while len(outcome["answered"]) < least and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep((0.0 if least else 0.5) + random.Random(turn).random())
        process.send_signal(number)
        if number == signal.SIGTERM:
            outcome["unready"] = int(_readiness(port) == 503)
            told.set()
        for client in clients:
            client.join()
        outcome["code"] = process.wait(30)
    return outcome


def _readiness(port: int) -> int:
    time.sleep(0.05)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except OSError:
        return 0


def _client(
    port: int,
    asked: list[str],
    number: int,
    outcome: dict[str, Any],
    lock: Any,
    told: threading.Event,
    index: int,
) -> None:
    """Ask until told not to, or until no connection can be made; clients of even index keep theirs."""
    draw, connection = random.Random(index), None
    while not told.is_set():
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                connection.connect()
            except OSError:
                return  # killed
        try:
            connection.request("POST", "/v1/recommend", draw.choice(asked), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException):
            with lock:
                outcome["dropped"] += number == signal.SIGTERM
            return
        with lock:
            if response.status == 200:
                outcome["answered"].append(content["request_id"])
            elif response.status == 503 and "retry-after" in response.headers:
                outcome["refused"] += 1  # for want of time
            else:
                outcome["dropped"] += number == signal.SIGTERM
        if index % 2 or response.headers.get("connection") == "close":
            connection.close()
            connection = None
