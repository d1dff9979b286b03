"""Which list `adagrpo decide` chooses in simulated shops of several kinds, against the truth.

    python -m research.worlds --out runs/worlds
    python -m research.worlds --table

`worlds.yaml` is the plan. A row of `worlds.jsonl` is a run: what was chosen, and true utility@10 and HR@10 on test of
every list that competed. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from adagrpo.cli.log_commands import recipe_of_logs
from adagrpo.cli.log_roles import by_role
from adagrpo.config.data import seconds_of
from adagrpo.config.yaml_text import parse_yaml
from adagrpo.lists.names import START
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from adagrpo.storage.writing import write_file
from research.command import run
from research.rows import add_row
from research.worlds.simulators import World, simulate
from research.worlds.tables import page, tables

HERE = Path(__file__).parent
RESULTS, TUNING, PAGE = HERE / "worlds.jsonl", HERE / "tuning.jsonl", HERE / "tables.md"
FIRST, TUNED = 200, 7  # the seed of the first world of each kind, and of the one that knobs were set on
TOP = 10


class Planned(NamedTuple):
    """A world of the plan."""

    kind: str
    world: int
    knobs: Mapping[str, float]


def main() -> None:
    """Measure what is missing, or print the tables of what is there."""
    plan = read_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/worlds"), help="where runs are made; each goes again")
    parser.add_argument("--kinds", nargs="+", choices=plan["kinds"], default=[*plan["kinds"]])
    parser.add_argument("--worlds", type=int, default=plan["worlds"], help="the first ones of each kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=plan["seeds"])
    parser.add_argument("--tune", action="store_true", help="world 7 of each kind, into tuning.jsonl")
    parser.add_argument("--table", action="store_true", help="print the tables alone, and write tables.md")
    given = parser.parse_args()
    results = TUNING if given.tune else RESULTS
    if not given.table:
        chosen = tuned(plan) if given.tune else worlds(plan, given.worlds)
        own = [planned for planned in chosen if planned.kind in given.kinds]
        for seed in given.seeds[:1] if given.tune else given.seeds:
            for planned in own:
                measure(plan, planned, seed, given.out, results)
    rows = list(read_rows(results))
    print("\n\n".join(tables(rows)))
    if not given.tune:
        write_file(PAGE, page(rows))


def read_plan() -> dict[str, Any]:
    """`worlds.yaml`."""
    plan: dict[str, Any] = yaml.safe_load((HERE / "worlds.yaml").read_text(encoding="utf-8"))
    return plan


def worlds(plan: Mapping[str, Any], count: int) -> Iterator[Planned]:
    """The first worlds of each kind, all first ones before the second ones; knobs are drawn within their ranges."""
    for number in range(count):
        for kind, ranges in plan["kinds"].items():
            draw = np.random.default_rng([plan["seed"], number, *kind.encode()])
            knobs = {name: _drawn(draw, *ends) for name, ends in (plan["sizes"] | ranges).items()}
            yield Planned(kind, FIRST + number, knobs)


def _drawn(draw: np.random.Generator, low: float, high: float) -> float:
    if isinstance(low, int):
        return int(draw.integers(low, high, endpoint=True))
    return round(float(draw.uniform(low, high)), 3)


def tuned(plan: Mapping[str, Any]) -> Iterator[Planned]:
    """A world of each kind that is none of the plan, with knobs in the middle."""
    for kind, ranges in plan["kinds"].items():
        ends = (plan["sizes"] | ranges).items()
        yield Planned(kind, TUNED, {name: type(low)((low + high) / 2) for name, (low, high) in ends})


def measure(plan: Mapping[str, Any], planned: Planned, seed: int, out: Path, results: Path) -> None:
    """Decide from a shop's files as the command line does, and write the row, unless it is there."""
    key = {"kind": planned.kind, "world": planned.world, "seed": seed}
    if any(all(row[name] == value for name, value in key.items()) for row in read_rows(results)):
        return
    world = simulate(planned.kind, planned.world, **planned.knobs)
    folder = out / f"{planned.kind}-{planned.world}-{seed}"
    started = time.perf_counter(), time.process_time()
    recipe, *_ = recipe_of_logs(by_role(world.write(folder / "files")), folder.name, ())
    made = Run.create(parse_yaml(recipe), folder / "run", settings=[*plan["settings"], f"seed={seed}"])
    content = made.decide()
    taken = time.perf_counter() - started[0], time.process_time() - started[1]
    lists = {one["list"]: made.checked("evaluate", one["list"], "predictions.parquet") for one in content["contenders"]}
    users = pl.read_parquet(lists[START])["user_id"].n_unique()
    split = made.config.data.split
    truth = world.truth(seconds_of(str(split.test_from)) if split.kind == "temporal" else None)
    row = {
        **key,
        "knobs": planned.knobs,
        "chosen": content["chosen"],
        "best": content["best"],
        "utility": {name: true_utility(world, truth, pl.read_parquet(path), users) for name, path in lists.items()},
        "asked": {"kind": split.kind, "baskets": split.baskets, "cases": users},
        "hits": {one["list"]: one["test"][f"hr@{TOP}"] for one in content["contenders"]},
        "wall_seconds": round(taken[0]),  # of the last attempt
        "processor_seconds": round(taken[1]),
    }
    add_row(results, row)
    shutil.rmtree(folder)
    print(f"{folder.name}: {row['chosen']}, {row['wall_seconds']} s", flush=True)


def true_utility(world: World, truth: NDArray[np.float64], lists: pl.DataFrame, users: int) -> float:
    """The mean over the ten places of each user's list; a place without an item gives 0.

    Args:
        truth: (U, V) at the visits that the test cases are.
        lists: user_id, item_id and rank, from 1.
        users: how many have a list, which may be empty.
    """
    top = lists.filter(pl.col("rank") <= TOP)
    return float(world.utility(truth, top["user_id"], top["item_id"]).sum() / (TOP * users))


if __name__ == "__main__":
    run(main)
