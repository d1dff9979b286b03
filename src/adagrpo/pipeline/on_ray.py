"""Run tasks on a pool of Ray Data actors.

Ray repeats the tasks of dead actors, so workers must rename their output to a name derived from the task. Several
machines need a shared file system. Without `RAY_ADDRESS`, Ray runs on this machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from adagrpo.errors import UserError, install

TASK, ANSWER, REFUSED = "task", "answer", "refused"


def each_on_ray(
    tasks: Callable[[], Iterator[Any]], worker: Callable[[], Callable[[Any], Any]], actors: int
) -> Iterator[Any]:
    """Yield task results in order of completion.

    Args:
        tasks: called in a Ray task; yields JSON-able tasks.
        worker: called once per actor; returns the function that runs a task.
    """
    if find_spec("ray") is None:
        raise UserError(f"--ray needs the extra ray: {install('ray')}")
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    with _running(actors):
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # one task per block, since a block goes to one actor
        done = ray.data.read_datasource(_stream(tasks), override_num_blocks=1).map_batches(
            _Actor,
            fn_constructor_args=(worker,),
            batch_size=1,
            compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        )
        for row in done.iter_rows():
            if row[REFUSED]:
                raise UserError(row[REFUSED])
            yield json.loads(row[ANSWER])


def _stream(tasks: Callable[[], Iterator[Any]]) -> Any:
    import pyarrow as pa
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def blocks() -> Iterator[Any]:
        for task in tasks():
            yield pa.table({TASK: [json.dumps(task)]})

    class Stream(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(
            self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
        ) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(blocks, unknown)]

    return Stream()


class _Actor:
    """Runs tasks; returns a `UserError` as a result, since Ray wraps exceptions."""

    def __init__(self, worker: Callable[[], Callable[[Any], Any]]) -> None:
        self.worker = worker
        self.function: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            self.function = self.function or self.worker()
            done = [self.function(json.loads(task)) for task in batch[TASK]]
        except UserError as error:
            return {ANSWER: ["null"], REFUSED: [str(error)]}
        return {ANSWER: [json.dumps(one) for one in done], REFUSED: [""] * len(done)}


@contextmanager
def _running(actors: int) -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        # "local": a new instance, even if another Ray runs here, which would refuse a number of CPUs
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(address="local", num_cpus=actors + 1, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
