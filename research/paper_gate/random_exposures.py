"""The arms of the trial on videos that were shown at random: which gate orders the clicks there better?

    python -m research.paper_gate.random_exposures --data DIR --out runs/paper-gate
    python -m research.paper_gate.random_exposures --table

Takes the finished seeds of KuaiRand's trial from `--out`: the last checkpoint of every arm, histories of training, and
`USERS` users of random_exposures.parquet who clicked some of what they were shown there; what a user's log holds is
left out. A row of `random-kuairand-clicks.jsonl` is an arm: its AUC, and less continued NLL, the gate's random one and
no gate, means over the seeds with 95 % intervals over users.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from adagrpo.data.exposures import random_exposures, telling
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.prepared import load_item_ids, load_training
from adagrpo.pipeline import Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.report.page import read_rows
from adagrpo.statistics import mean_interval
from research.command import run
from research.exposed_feed.orders import judge_order, policy_scores
from research.rows import add_row

HERE = Path(__file__).parent
SET, FOLDER = "kuairand-clicks", "kuairand-pure-log"
RESULTS = HERE / f"random-{SET}.jsonl"
USERS, SEED = 5_000, 0  # judged by, and of their draw
Floats = NDArray[np.float64]


def main() -> None:
    """Measure, or print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, help="of research.paper_gate.trial")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        _measure(given.data / FOLDER / "random_exposures.parquet", given.out / SET)
    print(table(read_rows(RESULTS)))


def _measure(file: Path, out: Path) -> None:
    runs = [Run.open(folder) for folder in sorted(out.glob("seed-*")) if (folder / "evaluate" / "rerank").is_dir()]
    first = RunData(runs[0]).prepared
    shown = _shown(file, first)
    users, items, clicked = (shown[name].to_numpy() for name in ("user", "item", "clicked"))
    histories = load_training(first)
    found: dict[str, list[Floats]] = {}
    for made in runs:
        data = RunData(made)
        assert load_item_ids(data.prepared).equals(load_item_ids(first)), "seeds share the data"
        for arm in [arm.name for arm in made.config.train.arms]:
            policy = Models(data).policy(made.path("train", arm, "final"))
            scores = policy_scores(policy, data.catalog, histories, users, items, max_history=made.config.max_history)
            auc = judge_order(scores, clicked, users).users["auc"]
            found.setdefault(arm, []).append(auc.to_numpy())
            print(made.config.seed, arm, round(float(auc.mean()), 4), flush=True)
    means = {arm: np.mean(values, axis=0) for arm, values in found.items()}
    for arm, values in means.items():
        kind, _, pressure = arm.rpartition("-p")
        rollouts = kind.partition("-")[0]
        others = ["nll", *(f"{rollouts}-{gate}-p{pressure}" for gate in ("random", "none"))]
        against = {name: list(mean_interval(values - means[name])[:3]) for name in others if name in means}
        row = {"dataset": SET, "seeds": len(runs), "arm": arm, "users": len(values), "auc": float(values.mean())}
        add_row(RESULTS, row | {"against": against})


def _shown(file: Path, prepared: Path) -> pl.DataFrame:
    """The random exposures of the users who tell something, in the numbers of the run."""
    logs = read_logs([file], Columns(clicked="clicked"), ordered=False)
    lengths = load_training(prepared).lengths
    return telling(random_exposures(logs, prepared)[0], lengths, USERS, np.random.default_rng(SEED))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """AUC points that each arm has more than continued NLL, the random gate of its size, and no gate."""
    lines = ["| arm | seeds | users | AUC | minus NLL, points | minus random | minus no gate |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        ends = {
            name: "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * v for v in one)) for name, one in row["against"].items()
        }
        by = {name if name == "nll" else name.split("-")[1]: text for name, text in ends.items()}
        own = row["arm"].split("-")[1] if "-" in row["arm"] else "nll"
        cells = [by.get(name, "–") if name != own else "–" for name in ("nll", "random", "none")]
        lines.append(f"| {row['arm']} | {row['seeds']} | {row['users']:,} | {row['auc']:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
