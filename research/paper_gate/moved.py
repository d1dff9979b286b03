"""How far each arm of the trial moved the policy, and at which code its invalid Semantic IDs leave the catalogue.

    python -m research.paper_gate.moved --data DIR --out runs/paper-gate --sets amazon18-scientific

Reads the runs of `research.paper_gate.trial` whose seeds are done, and trains nothing. Rows go to `moved-<set>.jsonl`,
one an arm and seed, at the last step and on test cases:

    distance    the Euclidean distance of all weights from those of continued NLL
    leaves_at   for each level, the share of the first ten of a free beam whose codes up to there begin no item while
                those before do; together they are the invalid Semantic IDs
    users       the share of users with one
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file

from adagrpo.data.columns import USER_ID
from adagrpo.pipeline import Run
from adagrpo.pipeline.directory import trained_arms
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from research.command import run
from research.fair_trial import tune as fair
from research.rows import add_row

__all__ = ["distance", "leaves_at"]

HERE = Path(__file__).parent
TOP, BASELINE = 10, "nll"


def distance(one: Path, other: Path) -> float:
    """The Euclidean distance of the weights in two files of safetensors.

    Args:
        one: a file.
        other: another, of a policy of the same sizes.
    """
    first, second = load_file(one), load_file(other)
    return float(np.sqrt(sum(((first[k].astype(np.float64) - second[k]) ** 2).sum() for k in first)))


def leaves_at(codes: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
    """The level at which codes leave the catalogue, from 1; 0 where they name an item.

    Args:
        codes: (N, L) generated.
        items: (V, L) of the catalogue.

    Example:
        >>> leaves_at(np.array([[1, 2], [1, 3], [4, 2]]), np.array([[1, 2], [5, 3]])).tolist()
        [0, 2, 1]
    """
    found = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1], 0, -1):
        begun = {tuple(row) for row in items[:, :level].tolist()}
        found[[tuple(row) not in begun for row in codes[:, :level].tolist()]] = level
    return found


def measure(name: str, data: Path, out: Path) -> None:
    """The rows of a set that are not there yet."""
    results = HERE / f"moved-{name}.jsonl"
    known = {(row["seed"], row["arm"]) for row in read_rows(results)}
    plan = fair.read_plan(name)
    for seed in plan["seeds"].get(name, plan["seeds"]["others"]):
        made = Run(
            out / name / f"seed-{seed}",
            fair.recipe_of(plan, name, f"seed={seed}"),
            fair.folder_of(plan, name, data),
        )
        if not made.path("evaluate", "rerank").is_dir():
            continue
        items = RunData(made).catalog.codes.cpu().numpy()
        for arm in trained_arms(made):
            if (seed, arm) not in known:
                add_row(results, {"dataset": name, "seed": seed, "arm": arm} | row_of(made, arm, items))


def row_of(made: Run, arm: str, items: NDArray[np.int64]) -> dict[str, Any]:
    """What a row says of an arm.

    Args:
        made: the run of a seed.
        arm: one of its trained arms.
        items: (V, L) codes of the catalogue.
    """
    weights = [made.path("train", one, "final", "model.safetensors") for one in (arm, BASELINE)]
    lists = pl.read_parquet(made.path("evaluate", arm, "final", "free.parquet")).filter(pl.col("rank") <= TOP)
    level = leaves_at(np.array(lists["codes"].to_list(), np.int64), items)
    shares = np.bincount(level, minlength=items.shape[1] + 1)[1:] / len(level)
    users = lists.filter(level > 0)[USER_ID].n_unique() / lists[USER_ID].n_unique()
    return {"distance": distance(*weights), "leaves_at": shares.tolist(), "users": users}


def main() -> None:
    """Measure the sets that are asked for."""
    given = fair.set_parser(__doc__).parse_args()
    for name in given.sets:
        measure(name, given.data, given.out)


if __name__ == "__main__":
    run(main)
