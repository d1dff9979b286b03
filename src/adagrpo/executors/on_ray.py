"""Tasks by Ray Data: one Ray task reads them as a stream, a pool of actors carries them out.

Ray starts an actor that died again and gives it its task again. On several machines the folders that tasks name have to
be the same everywhere: a shared file system. With `RAY_ADDRESS` in the environment that cluster is used, otherwise Ray
is started on this machine for as long as the tasks last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from adagrpo.executors.tasks import Tasks, Worker, attempt, outcome

__all__ = ["each_on_ray", "ray_running"]

TASK, ANSWER = "task", "answer"


def each_on_ray(tasks: Tasks, worker: Worker, count: int) -> Iterator[Any]:
    """The results of all tasks, see `adagrpo.executors.executor.each`.

    Args:
        tasks: gives the tasks; called by a Ray task.
        worker: gives the function of a task; called in each actor.
        count: of actors.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a task is a block: a block goes to one actor
    read = ray.data.read_datasource(_stream(tasks), override_num_blocks=1)
    done = read.map_batches(
        _Actor,
        fn_constructor_args=(worker,),
        batch_size=1,
        compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
    )
    for row in done.iter_rows():
        yield outcome(json.loads(row[ANSWER]))


def _stream(tasks: Tasks) -> Any:
    """A source of Ray Data with the tasks, one a row, read by one Ray task."""
    import pyarrow as pa
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def blocks() -> Iterator[Any]:
        for task in tasks():
            yield pa.table({TASK: [json.dumps(task)]})

    class Stream(Datasource):  # type: ignore[misc]
        """Of unknown length, since the tasks come from a generator."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(blocks, unknown)]

    return Stream()


class _Actor:
    """A worker."""

    def __init__(self, worker: Worker) -> None:
        self.made = attempt(worker)
        self.function = self.made.get("result")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = []
        for task in batch[TASK]:
            done = attempt(partial(self.function, json.loads(task))) if self.function else self.made
            answers.append(json.dumps(done))
        return {ANSWER: answers}


@contextmanager
def ray_running(count: int) -> Iterator[None]:
    """Ray, started here and ended again unless it runs already or an address is given."""
    import ray

    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        # "local": its own, also where another Ray runs on this machine, which would refuse a number of processors
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(address="local", num_cpus=count + 1, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
