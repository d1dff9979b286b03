"""What `adagrpo decide` serves in simulated shops, whose truth neither it nor any model reads.

    python -m research.decisions.measure --out runs/decisions --seeds 0 1 2 3 4
    python -m research.decisions.measure --out runs/decisions --seeds 5 6 7 8 9 --rewards shown
    python -m research.decisions.measure --table

`plan.yaml` says which shops and rewards. A row of `decisions.jsonl` has what was chosen and, for every contender, HR@10
and NDCG@10 on validation, HR@10, NDCG@10 and true utility@10 on test. What has its row is not measured again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from adagrpo.config import load_config
from adagrpo.console import StderrConsole
from adagrpo.evaluation.statistics import mean_interval
from adagrpo.pipeline import Run
from adagrpo.report import read_rows
from research.command import run
from research.rows import add_row

HERE = Path(__file__).parent
RESULTS = HERE / "decisions.jsonl"
UTILITY = "true_utility@10"


def main() -> None:
    """Measure what is missing, or print the table of what is there."""
    parser = arguments(__doc__)
    parser.add_argument("--rewards", nargs="+", help="some of the plan's; all of them if not given")
    given = parser.parse_args()
    if not given.table:
        plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
        for seed in given.seeds:
            for bias in plan["exposure_bias"]:
                for reward in given.rewards or plan["rewards"]:
                    _measure(plan, bias, reward, seed, given.out)
    print(table(read_rows(RESULTS)))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What the studies of simulated shops in this folder take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where runs are made; each goes when its rows are written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--table", action="store_true", help="print the table alone")
    return parser


def carry_out(
    description: str | None,
    measure: Callable[[Mapping[str, Any], float, int, Path], None],
    written: Callable[[], str],
) -> None:
    """Measure each shop of the plan under the seeds that are given, and print the table of what is there."""
    given = arguments(description).parse_args()
    if not given.table:
        plan = yaml.safe_load((HERE / "plan.yaml").read_text(encoding="utf-8"))
        for seed in given.seeds:
            for bias in plan["exposure_bias"]:
                measure(plan, bias, seed, given.out)
    print(written())


def shop(plan: Mapping[str, Any], bias: float, reward: str, seed: int, folder: Path) -> Run:
    """The run of a shop of the plan."""
    settings = [*plan["settings"], *plan["rewards"][reward], f"data.marketplace.exposure_bias={bias}", f"seed={seed}"]
    return Run(folder, load_config(HERE.parents[1] / plan["recipe"], settings), Path(), StderrConsole())


def _measure(plan: Mapping[str, Any], bias: float, reward: str, seed: int, out: Path) -> None:
    key = {"exposure_bias": bias, "reward": reward, "seed": seed}
    if any(all(row[name] == value for name, value in key.items()) for row in read_rows(RESULTS)):
        return
    folder = out / f"{reward}-{bias:g}-{seed}"
    content = shop(plan, bias, reward, seed, folder).decide()
    contenders = {row["list"]: {"validation": row["validation"], "test": row["test"]} for row in content["contenders"]}
    add_row(RESULTS, key | {"chosen": content["chosen"], "best": content["best"], "contenders": contenders})
    shutil.rmtree(folder)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """True utility@10 of what was served against other lists: the mean difference, and in how many shops it is lower.

    `at most` is the exact upper bound of that share, one-sided at 95 % (Clopper and Pearson 1934).
    """
    lines = ["| against | shops | difference | lower in | at most | lower by more than .005 in |"]
    lines.append("|---|--:|---|--:|--:|--:|")
    served = np.array([row["contenders"][row["chosen"]]["test"][UTILITY] for row in rows])
    names = [*dict.fromkeys(name for row in rows for name in row["contenders"])]
    others = {name: np.array([_utility(row, name) for row in rows]) for name in names}
    others["best contender by truth"] = np.nanmax(np.stack([others[name] for name in names]), axis=0)
    for name, values in others.items():
        there = np.isfinite(values)
        gained = (served - values)[there]
        mean, low, high, _ = mean_interval(gained)
        lines.append(
            f"| {name} | {there.sum()} | {mean:+.4f} ({low:+.4f} to {high:+.4f}) | {(gained < 0).mean():.0%} |"
            f" {upper_share(int((gained < 0).sum()), len(gained)):.0%} | {(gained < -0.005).mean():.0%} |"
        )
    return "\n".join(lines)


def upper_share(count: int, of: int) -> float:
    """The exact one-sided upper bound of a share, at 95 %.

    Example:
        >>> round(upper_share(0, 60), 3)
        0.049
    """
    return float(stats.beta.ppf(0.95, count + 1, of - count)) if count < of else 1.0


def _utility(row: Mapping[str, Any], name: str) -> float:
    return float(row["contenders"][name]["test"][UTILITY]) if name in row["contenders"] else float("nan")


if __name__ == "__main__":
    run(main)
