"""One function over many tasks: here, in processes of this machine, or by Ray Data on as many machines as Ray has.

A task may be carried out more than once: a worker that dies takes its task with it, and another worker gets that task.
So a function writes what it makes in one move, under a name that the task alone decides. Then nothing is lost and
nothing is there twice, whoever was killed when.

Tasks and results are what JSON holds. Tasks come from a generator, so that no more of them are in memory than are in
hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from adagrpo.errors import UserError
from adagrpo.executors.tasks import Tasks, Worker

__all__ = ["SERIAL", "Executor", "Kind", "each", "team"]

Kind = Literal["serial", "processes", "ray"]


class Executor(NamedTuple):
    """Who carries out the tasks, and how many at a time."""

    kind: Kind = "serial"
    workers: int = 1


SERIAL = Executor()


def each(tasks: Tasks, worker: Worker, executor: Executor = SERIAL) -> Iterator[Any]:
    """The results of all tasks, in the order in which they are done; the order of the tasks if serial.

    Args:
        tasks: gives the tasks, once. Ray calls it on a machine of its own: like `worker` it is a function of a module,
            or a `functools.partial` of one.
        worker: called once in each worker, such as to load a model; gives the function of a task.
        executor: who does it.

    Raises:
        UserError: a task raised it, or Ray is asked for and not installed.
        RuntimeError: a task raised something else, or ended every worker that tried it.
    """
    with team(worker, executor) as carry_out:
        yield from carry_out(tasks)


@contextmanager
def team(worker: Worker, executor: Executor = SERIAL) -> Iterator[Callable[[Tasks], Iterator[Any]]]:
    """Workers for several rounds of tasks, each of which is known only when the one before it is done; see `each`."""
    if executor.kind == "serial":
        function = worker()
        yield lambda tasks: map(function, tasks())
    elif executor.kind == "processes":
        from adagrpo.executors.local_workers import LocalTeam

        local = LocalTeam(worker, executor.workers)
        try:
            yield local.each
        finally:
            local.end()
    else:
        if find_spec("ray") is None:
            raise UserError("the executor ray needs the extra ray: pip install 'adagrpo[ray]'")
        from adagrpo.executors.on_ray import each_on_ray, ray_running

        with ray_running(executor.workers):
            yield lambda tasks: each_on_ray(tasks, worker, executor.workers)
