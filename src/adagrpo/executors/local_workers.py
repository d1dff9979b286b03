"""Tasks in processes of this machine, each with a pipe of its own.

A process that is killed closes its pipe: its task alone goes to another one, which is started in its place, and what
the others have in hand goes on. If the process that asked is killed, the workers find their pipes closed and end after
the task in hand.

Processes are started anew ("spawn"), since one that runs threads of torch or polars cannot be copied safely.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from adagrpo.executors.tasks import Tasks, Worker, attempt, outcome

__all__ = ["LocalTeam"]

MOST_ENDS = 3  # workers that may end at one task
THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS")


class LocalTeam:
    """Processes that carry out tasks until the team is ended; each is started when there is a first task for it."""

    def __init__(self, worker: Worker, count: int) -> None:
        """Start nothing yet.

        Args:
            worker: gives the function of a task; called in each process.
            count: of processes. The cores are shared out among them where the environment says nothing of threads.
        """
        self.worker, self.count = worker, count
        self.idle: list[_Process] = []
        self.busy: dict[Any, _Process] = {}  # by their pipes

    def each(self, tasks: Tasks) -> Iterator[Any]:
        """The results of all tasks, see `adagrpo.executors.executor.each`.

        Raises:
            RuntimeError: a task ended as many processes as may end at it.
        """
        coming, again = tasks(), deque[_Task]()
        while True:
            while len(self.busy) < self.count:
                task = again.popleft() if again else next(map(_Task, coming), None)
                if task is None:
                    break
                one = self.idle.pop() if self.idle else _Process(self.worker, self.count)
                self.busy[one.pipe] = one
                one.give(task)
            if not self.busy:
                return
            for pipe in wait(list(self.busy)):
                one = self.busy[pipe]
                answer = one.take()
                del self.busy[pipe]
                if answer is None:
                    again.append(one.task.ended(one.exit_code()))
                else:
                    self.idle.append(one)
                    yield outcome(answer)

    def end(self) -> None:
        """End all processes, whatever they have in hand."""
        for one in (*self.idle, *self.busy.values()):
            one.end()
        self.idle, self.busy = [], {}


class _Task:
    """A task, and how many processes ended at it."""

    def __init__(self, content: Any) -> None:
        self.content, self.ends = content, 0

    def ended(self, exit_code: int | None) -> _Task:
        """This task again, unless it ends every process that tries it."""
        self.ends += 1
        if self.ends == MOST_ENDS:
            killed = " (killed; was there enough memory?)" if exit_code == -signal.SIGKILL else ""
            raise RuntimeError(f"{MOST_ENDS} workers ended at the same task, the last with status {exit_code}{killed}")
        return self


class _Process:
    """A worker, and what it has in hand."""

    def __init__(self, worker: Worker, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.task = _Task(None)
        self.pipe, theirs = context.Pipe()
        with _threads(max(1, (os.cpu_count() or 1) // count)):
            self.process = context.Process(target=_work, args=(theirs, worker), daemon=True)
            self.process.start()
        theirs.close()

    def give(self, task: _Task) -> None:
        """Have it carry out a task; one that has ended by now is found out when its answer is taken."""
        self.task = task
        with suppress(OSError):
            self.pipe.send(task.content)

    def take(self) -> dict[str, Any] | None:
        """What came of the task in hand; None if the process has ended."""
        try:
            return dict(self.pipe.recv())
        except (EOFError, OSError):
            return None

    def exit_code(self) -> int | None:
        """Of a process that has ended: its status, or the negative number of the signal."""
        self.process.join(10)
        self.pipe.close()
        return self.process.exitcode

    def end(self) -> None:
        """End it, whatever it has in hand."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have processes that are started in the block run so many threads, where the environment does not say."""
    missing = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, str(count)))
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _work(pipe: Connection, worker: Worker) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked is interrupted too, and ends this one
    made: list[Callable[[Any], Any]] = []

    def carry_out(task: Any) -> Any:
        if not made:
            made.append(worker())
        return made[0](task)

    with suppress(EOFError, OSError):  # the process that asked has ended
        while True:
            task = pipe.recv()
            pipe.send(attempt(partial(carry_out, task)))
