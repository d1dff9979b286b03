"""What `diagnose` says of the reward of a set, from the starting policy that is tuned on and before any training.

    python -m research.fair_trial.diagnosed --data DIR --out runs/fair --sets kuairand-clicks lastfm

`--out` is that of the tuning, whose start is made where it is not there. Validation cases alone are read. A row a set
is kept in `diagnosed.jsonl` beside this file, and a set that has its row is not diagnosed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adagrpo.report.page import read_rows
from adagrpo.storage.writing import write_file
from research.command import run
from research.fair_trial.tune import HERE, fixed, folder_of, read_plan, set_parser, start, tuned_on

__all__ = ["row_of"]

RESULTS = "diagnosed.jsonl"


def row_of(name: str, seed: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a diagnosis.

    Args:
        name: of the set.
        seed: of the starting policy.
        found: the content of `diagnose.json`.
    """
    said = {key: found["verdict"][key] for key in ("decision", "strength", "reached", "evidence")}
    reward = found["of"]["reward"]["kind"]
    return {"set": name, "seed": seed, "reward": reward, "cases": found["settings"]["cases"], **said}


def main() -> None:
    """Diagnose each set that has no row of the present plan."""
    parser, results = set_parser(__doc__), HERE / RESULTS
    given = parser.parse_args()
    for name in given.sets:
        plan = read_plan(name)
        if tuned_on(plan, name) != name:
            parser.error(f"--sets {name}: starts as {tuned_on(plan, name)} does, and is not tuned on")
        rows = {row["set"]: row for row in read_rows(results)}
        if rows.get(name, {}).get("plan") == (of := fixed(plan, name)):
            continue
        found = start(plan, name, folder_of(plan, name, given.data), given.out).diagnose().content
        rows[name] = {"plan": of} | row_of(name, plan["tuning_seed"], found)
        write_file(results, "".join(json.dumps(rows[key]) + "\n" for key in plan["sets"] if key in rows))


if __name__ == "__main__":
    run(main)
