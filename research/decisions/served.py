"""Are the lists that are served those that were measured? Item by item, for every contender of `adagrpo decide`.

    python -m research.decisions.served --data DIR --out runs/decisions --sets amazon-beauty
    python -m research.decisions.served --table

Takes the runs of `research.decisions.sets` from `--out`, and asks `Run.recommend`, which is what the service answers
with, for the first ten items of `USERS` test users drawn without replacement. A row of `served.jsonl` has, by list, how
many of them differ in any place from what `evaluate` measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from research.command import run
from research.decisions.sets import HERE, arguments, predictions
from research.rows import add_row

RESULTS = HERE / "served.jsonl"
USERS, TOP, AT_A_TIME = 10_000, 10, 256
SEED = 0  # of the draw


def main() -> None:
    """Compare what is missing, or print the table of what is there."""
    given = arguments(__doc__).parse_args()
    if not given.table:
        done = {(row["set"], row["seed"]) for row in read_rows(RESULTS)}
        for seed in given.seeds:
            for name in given.sets:
                if (name, seed) not in done:
                    found = _compared(Run.open(given.out / f"{name}-{seed}"))
                    add_row(RESULTS, {"set": name, "seed": seed} | found)
    print(table(read_rows(RESULTS)))


def _compared(made: Run) -> dict[str, Any]:
    prepared = made.path("prepare")
    cases, items, users = load_cases(prepared, "test"), load_item_ids(prepared), load_user_ids(prepared)
    count = min(USERS, len(cases))
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(cases))[:count])
    histories = [items.gather(cases.histories.row(row)).to_list() for row in chosen]
    ids = users.gather(cases.users[chosen]).to_list()
    content = json.loads(made.path("decision.json").read_text("utf-8"))
    differ = {}
    for contender in content["contenders"]:
        name = contender["list"]
        measured = predictions(made, name).filter(pl.col("rank") <= TOP).sort("user_id", "rank")
        expected = dict(measured.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
        differ[name] = 0
        for first in range(0, count, AT_A_TIME):
            part = slice(first, first + AT_A_TIME)
            served = made.recommend(histories[part], k=TOP, arm=name)
            asked = zip(ids[part], served.items, strict=True)
            differ[name] += sum(found != expected.get(user, []) for user, found in asked)
    return {"users": count, "differ": differ}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many lists differ, by contender."""
    lines = ["| set | seed | users | lists that differ |", "|---|--:|--:|---|"]
    for row in rows:
        differ = ", ".join(f"{name} {count}" for name, count in row["differ"].items())
        lines.append(f"| {row['set']} | {row['seed']} | {row['users']:,} | {differ} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
