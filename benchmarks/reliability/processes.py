"""Runs of the command line in processes that can be killed, from outside or by themselves at a named moment.

A server imports everything once and forks a process for each run, so that a run costs no imports. It must not compute
anything itself: thread pools do not survive a fork.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save

__all__ = ["FULL", "MOMENTS", "SAVES", "Server", "run_together", "server"]

ROOT = Path(__file__).parent.parent.parent

# where a process may be told to kill itself, at the n-th time that it comes there
MOMENTS = {
    "write": "half of a file of a checkpoint is written",
    "seal": "the files of a checkpoint are written, its manifest is not",
    "publish": "a checkpoint is sealed, but not in its place",
    "published": "a checkpoint is in its place, the one before it is there too",
    "line": "half of a line of a log is written",
    "micro": "a micro-batch of a step is done, the others are not",
    "weights": "half of the best or final weights is written",
    "stage": "a stage is sealed, but not in its place",
}
SAVES = ("write", "seal", "publish", "published", "weights", "stage")  # those inside a save
IMPORTED = ("adagrpo.pipeline", "torch._dynamo", "torch.distributed.fsdp")  # the last two by the first step of a fit
NO_CHART = "<svg><title></title></svg>"
PATIENCE = 120.0  # seconds for the others to end once one of them has died
FULL = "full"  # not a death: from there on no file may grow beyond a thousand bytes, as on a disk that is full


class Server:
    """The server's other end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(
        self,
        arguments: Sequence[str],
        moment: str | None = None,
        count: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Begin a run of `adagrpo ARGUMENTS`; returns its process id."""
        text = {"arguments": [*arguments], "moment": moment, "count": count, "environment": dict(environment or {})}
        self._send(text)
        return int(self._answer()["pid"])

    def wait(self) -> tuple[int, str]:
        """Exit status of the run, negative for the signal that ended it, and the last line it wrote to stderr."""
        result = self._answer()
        return int(result["status"]), str(result["said"])

    def run(self, arguments: Sequence[str], moment: str | None = None, count: int = 1) -> tuple[int, str]:
        """Begin a run and wait for it."""
        self.start(arguments, moment, count)
        return self.wait()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server of processes has ended")
        reply: dict[str, Any] = json.loads(line)
        return reply


def _free_port() -> int:
    """A port below those that the system gives to others between now and its use."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def run_together(
    servers: Sequence[Server],
    arguments: Sequence[str],
    moment: str | None = None,
    count: int = 1,
    dies: int = 0,
) -> list[tuple[int, str]]:
    """Carry out a command in as many processes as there are servers; a moment is for one of them.

    What is left of them when one has died ends by itself.

    Args:
        servers: one a process.
        arguments: of the command.
        moment: at which a process kills itself.
        count: how often it has come there then.
        dies: which process.

    Returns:
        Exit status and last line of each.

    Raises:
        TimeoutError: it did not end.
    """
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ids = []
    for rank, process in enumerate(servers):
        environment = place | {"WORLD_SIZE": str(len(servers)), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ids.append(process.start(arguments, moment if rank == dies else None, count, environment))
    first = servers[dies].wait()
    others = [rank for rank in range(len(servers)) if rank != dies]
    if first[0] != 0:
        _await([ids[rank] for rank in others])
    ends = {dies: first} | {rank: servers[rank].wait() for rank in others}
    return [ends[rank] for rank in range(len(servers))]


def _await(ids: Sequence[int]) -> None:
    """Wait until processes have ended, and kill those that have not."""
    until = time.monotonic() + PATIENCE
    left = [*ids]
    while left:
        left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
        if left and time.monotonic() > until:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"{len(left)} processes were still there {PATIENCE:.0f} s after another had died")
        time.sleep(0.02)


@contextmanager
def server(work: Path) -> Iterator[Server]:
    """A server; `work` keeps what its runs say."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.reliability.processes", str(work)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def _arm(moment: str, count: int) -> None:
    """Make this process kill itself the `count`-th time that it comes to a moment."""
    from adagrpo.pipeline import make as stages
    from adagrpo.trainer import checkpoints, loop

    left = [count]

    def patch(
        owner: Any,
        name: str,
        last: Callable[..., object],
        when: Callable[..., bool] = lambda *_: True,
        dies: bool = True,
    ) -> None:
        """Kill in the place of a call, after a last act."""
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            left[0] -= when(*arguments)
            if left[0] == 0:
                last(*arguments, **options)
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        setattr(owner, name, wrapper)

    def nothing(*_: object, **__: object) -> None:
        pass

    def half(tensors: Any, path: Path, *_: object, **__: object) -> None:
        content = save(dict(tensors))
        path.write_bytes(content[: len(content) // 2])

    def half_line(path: Path, row: dict[str, Any]) -> None:
        text = json.dumps(row)
        with path.open("a", encoding="utf-8") as file:
            file.write(text[: len(text) // 2])

    def of_checkpoint(_: object, path: Path, *__: object) -> bool:
        return "checkpoints" in path.parts

    match moment:
        case "write":
            patch(checkpoints, "_write", half, of_checkpoint)
        case "weights":
            patch(checkpoints, "_write", half, lambda *arguments: not of_checkpoint(*arguments))
        case "seal":
            patch(checkpoints, "seal", nothing)
        case "publish":
            patch(checkpoints, "publish", nothing)
        case "published":
            patch(checkpoints, "publish", checkpoints.publish)
        case "line":
            patch(loop, "_append", half_line)
        case "micro":
            patch(loop.Accelerator, "backward", loop.Accelerator.backward)
        case "stage":
            patch(stages, "publish", nothing)
        case "full":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            fill = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, hard))
            patch(checkpoints, "_write", lambda *_, **__: fill(), of_checkpoint, dies=False)
        case _:
            raise ValueError(f"moment must be one of {', '.join(MOMENTS)}, got {moment}")


def _serve(work: Path) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    from adagrpo import cli
    from adagrpo.report import charts

    # half of the time of so small a run, and no suite looks at one
    setattr(charts, "draw", lambda *_, **__: NO_CHART)  # noqa: B010
    work.mkdir(parents=True, exist_ok=True)
    stderr = work / "said.txt"
    for line in sys.stdin:
        message = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with stderr.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.argv = ["adagrpo", *message["arguments"]]
            os.environ |= message["environment"]
            if message["moment"] is not None:
                _arm(message["moment"], message["count"])
            try:
                cli.main()
            except SystemExit as ended:
                sys.stdout.flush()
                os._exit(int(ended.code or 0))
        print(json.dumps({"pid": pid}), flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        lines = stderr.read_text(encoding="utf-8", errors="replace").splitlines()
        print(json.dumps({"status": status, "said": lines[-1] if lines else ""}), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
