"""The loop as a whole: every market of every world, in as many processes as are given, and its rows.

OUT/plan.json            the plan and the recipe, written first and held to
OUT/WORLD/begin/         see `research.closed_loop.beginnings`
OUT/WORLD/MARKET/        see `research.closed_loop.rounds`
OUT/rows.jsonl           a row an arm and round of what is finished
OUT/contrasts.jsonl      each arm against no training and continued NLL, by round
OUT/experiments.jsonl    what an A/B test within a market of several arms says
OUT/signs.jsonl          what a watch would have said, see `adagrpo.monitoring`
OUT/canaries.jsonl       what the signs said of each new policy that a share of the users was served first
OUT/loop.svg             the contrasts
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adagrpo.config import Config, dump_config
from adagrpo.console import Console, Silent
from adagrpo.errors import UserError
from adagrpo.storage.hashes import hash_json
from adagrpo.storage.locks import lock_folder
from adagrpo.storage.marks import check_kind
from adagrpo.storage.writing import write_file
from research.closed_loop.beginnings import Beginning, begin_world
from research.closed_loop.loop_summary import canaries_of, contrasts, experiments_of, loop_chart, signs_of
from research.closed_loop.plan import LoopPlan, read_loop_plan
from research.closed_loop.rounds import Market

__all__ = ["close_loop", "finished_rows"]

ROWS = "rows.jsonl"
PLAN = "plan.json"
PICTURE = "loop.svg"


def close_loop(path: Path, out: Path, workers: int = 1, console: Console | None = None) -> dict[str, Any]:
    """Play every market of a plan; the same command goes on after a kill.

    Args:
        path: of the plan.
        out: folder of the loop.
        workers: processes; each plays whole markets.
        console: where progress is shown.

    Returns:
        Counts of worlds, markets, rounds and rows, and the path of the rows.

    Raises:
        UserError: it is no plan, or the folder is another plan's.
    """
    shown = console or Silent()
    plan, config = read_loop_plan(path)
    check_kind(out, "loop")
    with lock_folder(out, "loop"):
        _hold(out, plan, config)
        # the first market of every world before the second of any: what is there early is of all worlds
        tasks = [(world, market) for market in plan.markets for world in plan.worlds]
        for done, (world, market) in enumerate(_played(path, out, tasks, workers), 1):
            shown.progress("loop", done, len(tasks), {})
            shown.stage(f"{world}/{market}", "end", 0.0)
            _write(out / ROWS, finished_rows(out, plan))
        rows = _gather(out, plan)
    counts = {"worlds": len(plan.worlds), "markets": len(tasks), "rounds": plan.rounds, "rows": rows}
    return counts | {"picture": str(out / PICTURE)}


def finished_rows(out: Path, plan: LoopPlan) -> Iterator[dict[str, Any]]:
    """The rows of all rounds that are finished."""
    for world in plan.worlds:
        for market in plan.markets:
            for path in sorted(out.glob(f"{world}/{market}/rounds/*/row.json")):
                for row in json.loads(path.read_text(encoding="utf-8")):
                    yield {"world": world, "market": market, **row}


def _played(path: Path, out: Path, tasks: list[tuple[str, str]], workers: int) -> Iterator[tuple[str, str]]:
    """Play markets, and say which is finished."""
    worlds = list(dict.fromkeys(world for world, _ in tasks))
    if workers == 1:
        for world in worlds:
            _begin(path, out, world)
        for world, market in tasks:
            _play(path, out, world, market)
            yield world, market
        return
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawned, initializer=_end_with_parent) as pool:
        list(pool.map(partial(_only_begin, path, out), worlds))
        running = {pool.submit(_play, path, out, world, market): (world, market) for world, market in tasks}
        failed: list[str] = []
        for finished in as_completed(running):
            error = finished.exception()
            if error is not None:  # the others go on
                failed.append(f"{'/'.join(running[finished])}: {error}")
            else:
                yield running[finished]
    if failed:
        raise UserError(f"{failed[0]}; {len(failed)} of {len(tasks)} markets are not finished")


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone, however that ended: another may begin its markets."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _begin(path: Path, out: Path, world: str) -> Beginning:
    torch.set_num_threads(1)
    plan, config = read_loop_plan(path)
    return begin_world(plan, config, world, out / world / "begin", Silent())


def _only_begin(path: Path, out: Path, world: str) -> None:
    """As `_begin`, for another process: what it gives cannot be sent to this one."""
    _begin(path, out, world)


def _play(path: Path, out: Path, world: str, market: str) -> None:
    beginning, (plan, _) = _begin(path, out, world), read_loop_plan(path)
    Market(plan, plan.markets[market], beginning, out / world / market).play()


def _hold(out: Path, plan: LoopPlan, config: Config) -> None:
    """Write what is decided before the first round, or hold the plan to it."""
    content = {"plan": plan.model_dump(mode="json", by_alias=True), "recipe": dump_config(config)}
    target = out / PLAN
    if not target.is_file():
        write_file(target, json.dumps(content, indent=1) + "\n")
    before = json.loads(target.read_text(encoding="utf-8"))
    if hash_json(before) != hash_json(content):
        part = next((name for name in content if before.get(name) != content[name]), "plan")
        raise UserError(f"{target}: the {part} was another one when the loop began; give another --out")


def _gather(out: Path, plan: LoopPlan) -> int:
    """Write what the finished rounds come to; the number of their rows."""
    against = contrasts(out, plan)
    _write(out / "contrasts.jsonl", against)
    _write(out / "signs.jsonl", signs_of(out, plan))
    _write(out / "experiments.jsonl", experiments_of(out, plan))
    _write(out / "canaries.jsonl", canaries_of(out, plan))
    trained = [
        name for name, one in plan.markets.items() if len(one.arms) == 1 and not one.explore and one.canary is None
    ]
    title = f"{plan.name}: what users were shown, by what the policy was trained by"
    write_file(out / PICTURE, loop_chart(against, plan, trained, title))
    return _write(out / ROWS, finished_rows(out, plan))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row) + "\n" for row in rows]
    write_file(path, "".join(lines))
    return len(lines)
