"""Batch recommendation: the lists of `adagrpo serve` as Parquet; summary.json is written last.

An interrupted command continues with missing or changed parts, by begun.json. Several machines need a shared file
system. Without `RAY_ADDRESS`, Ray runs on this machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adagrpo.data.columns import USER_ID
from adagrpo.data.histories import HISTORY, about_how_many, read_histories
from adagrpo.errors import UserError, install
from adagrpo.lists.eligibility import Filter
from adagrpo.pipeline.description import config_hash
from adagrpo.pipeline.directory import RunDirectory, hash_of, refuse_without_order
from adagrpo.pipeline.json_files import read_json, write_json
from adagrpo.pipeline.list_parts import COUNTS, Wanted, part_path, read_parts
from adagrpo.pipeline.named_lists import ListOptions, answering, list_read
from adagrpo.pipeline.serve import recommender
from adagrpo.readers.formats import columns_of, require
from adagrpo.storage.artifacts import seal, verify
from adagrpo.storage.hashes import hash_file, hash_json, with_hash, without_hash
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import is_marked
from adagrpo.storage.writing import TOKEN, remove_temporary, write_file

PART_USERS = 5000
SUMMARY, BEGUN = "summary.json", "begun.json"


def recommend_users(
    run: RunDirectory,
    users: Path,
    out: Path,
    asked: ListOptions = ListOptions(),  # noqa: B008 (it is frozen)
    *,
    k: int = 10,
    columns: tuple[str | None, str | None] = (None, None),
    include: Filter | None = None,
    exclude: Filter | None = None,
    popular: bool = False,
    explain: bool = False,
    ray_actors: int | None = None,
) -> dict[str, Any]:
    """Write lists for all users of a file, and return summary.json with the folder.

    Args:
        users: see `adagrpo.data.histories`; without histories, the complete logged ones, held-out items included.
        out: a new folder, or one that the same command began.
        asked: which lists; `exclude_history` applies to the whole history.
        columns: of users and histories. None: `user_id` or else the run's; `history`, if the file has it.
        popular: give users without a known history the most popular items; adds a column `source`.
        explain: adds a column `reasons`, a JSON text for each item, see `adagrpo.lists.explanation.reasons`.
        ray_actors: number of Ray Data actors; None: this process.
    """
    refuse_without_order(run.config, f"adagrpo ranker --run {run.called}")
    served, about = recommender(run, asked)
    answers = answering(run, asked)
    if answers.refit:
        fresh = f"of refresh {answers.refresh}" if answers.refresh else "as refit on all interactions"
        run.console.note(f"note: {answers.name} {fresh}; --as-measured takes the measured list")
    if not 1 <= k <= served.width:
        raise UserError(f"k: {k} is none of 1 to {served.width}, the beam of the recipe (evaluation.beam_width)")
    weights = hash_of(answers.run, answers.chosen.weights / "model.safetensors")
    kept = ("name", "arm", "checkpoint", "step", "reward_weight", "precision", "exclude_history", "catalog_version")
    made_from = {key: about[key] for key in kept} | {"k": k, "beam_width": served.width}
    made_from |= {"refit": True} if answers.refit else {}
    made_from |= {"refresh": answers.refresh} if answers.refresh else {}
    narrowing = served.narrow(include, exclude)
    if narrowing.left == 0:
        raise UserError("--include, --exclude: no item is eligible; see which values the item table has")
    if include or exclude:
        made_from |= {"include": include, "exclude": exclude, "eligible_items": narrowing.left}
    inputs: dict[str, Any] = {"weights": weights, "users": hash_file(users) if users.is_file() else None}
    inputs |= {"configuration": config_hash(run.config), "part_users": PART_USERS}
    reward = list_read(answers.run, answers.name, asked.reward_weight, asked.checkpoint)
    inputs |= {"reward": reward} if reward else {}
    for name in ("test", "later"):  # of logged histories; the weights do not depend on them
        path = answers.run.find("prepare", f"{name}.parquet")
        inputs |= {name: hash_of(answers.run, path)} if path else {}
    if columns[1] is not None:
        require(users, [columns[1]], columns_of(users), "--history-column")
    named = (columns[0] or _user_column(run, users), columns[1] or HISTORY)
    inputs |= {"columns": named} if named != (USER_ID, HISTORY) else {}
    added = ({"popular": True} if popular else {}) | ({"explain": True} if explain else {})
    fingerprint = hash_json(made_from | inputs | added)
    with lock_folder(out, "list of recommendations"):
        begun, finished = None, dict[str, str]()
        if (out / BEGUN).is_file():
            try:
                content = without_hash(read_json(out / BEGUN))
                begun, finished = str(content["fingerprint"]), dict(content["parts"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{out / BEGUN}: is not as it was written; --out takes a new folder") from error
        if (out / SUMMARY).is_file() and begun == fingerprint:
            verify(out)
            return read_json(out / SUMMARY) | {"folder": str(out)}
        if begun not in (None, fingerprint):
            raise UserError(
                f"{out}: holds lists of another checkpoint, catalogue, file, column, filter or length;"
                " --out takes a new folder"
            )
        for _ in read_histories(users, PART_USERS, user=named[0], history=named[1]):
            break  # read before anything is written, so that a refused file leaves no folder
        for name, digest in [*finished.items()]:
            if (out / name).is_file() and hash_file(out / name) != digest:
                run.console.note(f"note: {out / name}: changed after it was finished; it is made again")
            elif (out / name).is_file():
                continue
            del finished[name]
        _note_finished(out, fingerprint, finished)
        wanted = Wanted(
            kind=type(run),
            run=run.called.resolve(),
            overrides=run.overrides,
            users=users.resolve(),
            columns=named,
            part_users=PART_USERS,
            out=out.resolve(),
            token=TOKEN,
            fingerprint=fingerprint,
            weights=weights,
            reward=reward,
            k=k,
            # by name: a worker may start after the next catalogue was created
            asked=replace(asked, arm=about["arm"], catalog=about["catalog_version"]),
            include=include,
            exclude=exclude,
            popular=popular,
            explain=explain,
            kept=frozenset(finished),
        )
        worker = wanted.worker if ray_actors else partial(wanted.worker, (run, served))
        del served
        parts = _make(run, wanted, worker, ray_actors, finished)
        remove_temporary(out, {TOKEN}, is_marked)  # of killed actors
        counts, rows = dict.fromkeys(COUNTS, 0), {}
        for number in range(parts):
            path, facts = part_path(out, number), wanted.facts(number)
            if facts is None or hash_file(path) != finished[path.name]:
                raise UserError(f"{path}: changed after it was finished; the same command makes it again")
            counts = {name: count + facts[name] for name, count in counts.items()}
            rows[path.name] = {"first_row": facts["first_row"], "rows": facts["users"]}
        if not popular:
            del counts["popular_lists"]
        seal(out, kind="list of recommendations", fingerprint=fingerprint, files=rows)
        summary = made_from | counts
        write_json(out / SUMMARY, summary)
    return summary | {"folder": str(out)}


def _user_column(run: RunDirectory, users: Path) -> str:
    there, logged = columns_of(users), run.config.data.columns.user
    if USER_ID in there:
        return USER_ID
    require(users, [logged], there, "--user-column")
    return logged


def _note_finished(out: Path, fingerprint: str, finished: Mapping[str, str]) -> None:
    content = with_hash({"fingerprint": fingerprint, "parts": dict(sorted(finished.items()))})
    write_file(out / BEGUN, json.dumps(content) + "\n")


def _make(
    run: RunDirectory,
    wanted: Wanted,
    worker: Callable[[], Callable[[Any], Any]],
    ray_actors: int | None,
    finished: dict[str, str],
) -> int:
    expected, started, users, parts = about_how_many(wanted.users), time.monotonic(), 0, 0
    tasks = partial(read_parts, wanted)
    for done in each_on_ray(tasks, worker, ray_actors) if ray_actors else map(worker(), tasks()):
        parts = done.get("parts", parts)
        if "sha256" in done:
            finished[part_path(wanted.out, done["number"]).name] = done["sha256"]
            _note_finished(wanted.out, wanted.fingerprint, finished)
        users += 0 if "parts" in done else done["rows"]
        rate = users / max(1e-9, time.monotonic() - started)
        run.console.progress("recommend", users, max(users, expected), {"users/s": rate})
    return parts


TASK, ANSWER, REFUSED = "task", "answer", "refused"


def each_on_ray(
    tasks: Callable[[], Iterator[Any]], worker: Callable[[], Callable[[Any], Any]], actors: int
) -> Iterator[Any]:
    """Yield results of JSON-able tasks in order of completion; each actor calls `worker` once for what runs a task."""
    if find_spec("ray") is None:
        raise UserError(f"--ray needs the extra ray: {install('ray')}")
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    if not (running := ray.is_initialized()):
        # "local": a new instance, even if another Ray runs here, which would refuse a number of CPUs
        alone = {"address": "local", "num_cpus": actors + 1, "include_dashboard": False, "logging_level": "error"}
        ray.init(log_to_driver=False, **({} if "RAY_ADDRESS" in os.environ else alone))
    try:
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
    finally:
        if not running:
            ray.shutdown()


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
