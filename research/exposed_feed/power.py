"""KuaiRand: which power of exposure do the platform's random videos choose, and how sure is that?

    python -m research.exposed_feed.power --data DIR/kuairand-pure-log --out runs/exposed-power
    python -m research.exposed_feed.power --table    # writes tables.md

`adagrpo decide` with policy, ranker and reward of `recipe.yaml`, and the random videos as `data.random`: of the powers
0, .5 and 1 it takes the one whose fused list orders their clicks best. A row of `power.jsonl` is a seed: the AUC by
power over users who clicked some and left some, and differences from the best one with intervals over users.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.pipeline import Run
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table
from adagrpo.storage.writing import write_file
from research.command import run
from research.exposed_feed.measure import HERE
from research.marked_tables import with_marked
from research.rows import add_row

RESULTS, PAGE = HERE / "power.jsonl", HERE / "tables.md"
RANDOM = {
    "logs": ["random_exposures.parquet"],
    "columns": {"user": "user_id", "item": "item_id", "clicked": "clicked"},
}


def main() -> None:
    """Measure the seeds that have no row, and write the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/exposed-power"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="write the table alone")
    given = parser.parse_args()
    for seed in [] if given.table else given.seeds:
        measure(given.data, given.out / f"seed-{seed}", seed)
    write_file(
        PAGE, with_marked(PAGE.read_text(encoding="utf-8"), "power", {"powers": table(list(read_rows(RESULTS)))})
    )


def measure(data: Path, out: Path, seed: int) -> None:
    """Decide under a seed and write its row, unless it is there."""
    if any(row["seed"] == seed for row in read_rows(RESULTS)):
        return
    reward = f"reward={{kind: sequential, checkpoint: {(out / 'ranker/final').resolve()}}}"  # its last step
    own = [f"seed={seed}", "train.arms=[]", "decide.refit=false", f"data.random={json.dumps(RANDOM)}", reward]
    made = Run(out, load_config(HERE / "recipe.yaml", own), data, StderrConsole())
    content = made.decide()
    hits = {one["list"]: one["test"]["hr@10"] for one in content["contenders"]}
    found = {"users": content["random_users"], **content["exposure_power"]}
    add_row(RESULTS, {"seed": seed, **found, "chosen": content["chosen"], "hits": hits})


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a seed and power.

    Args:
        rows: of the study.
    """
    lines = []
    for row in rows:
        against = row["against"]
        for power, value in sorted(row["auc"].items(), key=lambda one: float(one[0])):
            less = (
                "taken"
                if power not in against
                else "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * end for end in against[power]))
            )
            lines.append((f"{row['seed']}", power, f"{value:.4f}", less, f"{row['users']:,}", f"{row['chosen']}"))
    heads = ("seed", "power", "AUC of clicks", "less than the best, points", "users", "list that decide chose")
    return Table.of(heads, lines, 1, 1)


if __name__ == "__main__":
    run(main)
