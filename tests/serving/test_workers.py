"""Several processes at one address; in a process of their own, since they are forked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import adagrpo

MODULE = Path(adagrpo.__file__).parent / "serving" / "workers.py"
SCRIPT = """
import importlib.util, json, os, signal, socket, sys, threading, time
from adagrpo.errors import UserError

spec = importlib.util.spec_from_file_location("workers", sys.argv[2])  # without the package, which takes seconds
workers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(workers)
workers.SHORTEST_LIFE = 0.1
listener = socket.create_server(("127.0.0.1", 0))

def tell(what):
    print(what, flush=True)

def work(begun):
    if sys.argv[1] == "fails":
        raise UserError("--run: nothing to serve")
    if os.path.exists(sys.argv[3] + ".broken"):
        raise UserError("sft is stale")
    ended, told = threading.Event(), [0]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if os.path.exists(sys.argv[3]):
        open(sys.argv[3] + ".begun", "w").close()
        while os.path.exists(sys.argv[3]):  # it loads, and is told to load again
            time.sleep(0.01)
    signal.signal(signal.SIGHUP, lambda *_: told.append(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    begun({"port": listener.getsockname()[1]})
    while True:
        client, _ = listener.accept()
        client.sendall(b"%d %d" % (os.getpid(), len(told) - 1))
        client.close()

try:
    ready, held_off = lambda said: tell(json.dumps(said)), lambda: tell("held off")
    workers.run_workers(2, listener, work, ready, tell, held_off, lambda error: tell(f"failed: {error}"))
except UserError as error:
    print(error)
    sys.exit(2)
"""


def ask(port: int) -> tuple[int, int]:
    """The process that answers, and how often it was told to load again."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        process, told = client.recv(100).split()
        return int(process), int(told)


def seen(port: int, count: int = 200) -> set[tuple[int, int]]:
    return {ask(port) for _ in range(count)}


def test_workers_share_an_address_are_told_together_and_replaced_when_they_die(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    command = [sys.executable, "-c", SCRIPT, "serves", str(MODULE), str(hold)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = json.loads(parent.stdout.readline())["port"]
        first = {process for process, _ in seen(port)}
        assert len(first) <= 2 and parent.pid not in first
        parent.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        assert {told for _, told in seen(port)} == {1}
        victim = min(first)
        hold.touch()
        os.kill(victim, signal.SIGKILL)
        assert int(parent.stdout.readline()) == victim
        while not hold.with_name("hold.begun").exists():
            time.sleep(0.01)
        parent.send_signal(signal.SIGHUP)  # the one in its place loads still, and hears of it all the same
        time.sleep(0.1)
        hold.unlink()
        processes = seen(port)
        while len({process for process, _ in processes}) < 2:
            processes = seen(port)
        assert victim not in {process for process, _ in processes}
        assert {told for process, told in processes if process not in first} == {1}
        assert {told for process, told in processes if process in first} == {2}
        last = {process for process, _ in processes}
        os.kill(min(last), signal.SIGTERM)  # one alone is told to end: it is replaced, and the others go on
        assert int(parent.stdout.readline()) == min(last)
        while len(last | {process for process, _ in seen(port)}) < 3:
            time.sleep(0.01)
        parent.terminate()
        assert parent.stdout.read() == "held off\n"
        assert parent.wait(10) == 0
    for process in first | last:
        assert not Path(f"/proc/{process}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_workers_end_when_the_first_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, "serves", str(MODULE), str(tmp_path / "hold")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = json.loads(parent.stdout.readline())["port"]
        workers = {process for process, _ in seen(port)}
        parent.kill()
    end, answer = time.monotonic() + 10, True
    while answer and time.monotonic() < end:
        try:
            ask(port)
        except (OSError, ValueError):
            answer = False
    for process in workers if answer else ():
        os.kill(process, signal.SIGKILL)
    assert not answer


def test_a_worker_that_cannot_begin_ends_all_with_its_reason() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "fails", str(MODULE), ""],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "--run: nothing to serve\n")


def test_a_worker_that_cannot_take_the_place_of_another_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, "serves", str(MODULE), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = json.loads(parent.stdout.readline())["port"]
        (tmp_path / "run.broken").touch()
        victim, _ = ask(port)
        os.kill(victim, signal.SIGKILL)
        assert int(parent.stdout.readline()) == victim
        assert parent.stdout.readline() == "failed: sft is stale\n"
        assert int(parent.stdout.readline()) != victim  # it is tried again
        (tmp_path / "run.broken").unlink()
        parent.terminate()
        assert parent.wait(10) == 0
