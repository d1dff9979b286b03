"""Prints the tables of the study and draws its charts, from what `adagrpo loop` wrote.

    python -m research.closed_loop.tables --loop research/closed_loop --figures research/closed_loop/figures

A value of a market is the mean over the worlds in which its last round is finished.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.config.closed_loop import LoopPlan, read_loop_plan
from adagrpo.monitoring.signs import SIGNS
from adagrpo.pipeline.closed_loop.loop_summary import loop_chart
from adagrpo.report import Table, read_rows, to_markdown
from adagrpo.storage.artifacts import write_file

__all__ = ["claims", "main", "outcomes", "signs"]

Row = dict[str, Any]


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=Path(__file__).with_name("plan.yaml"))
    parser.add_argument("--loop", type=Path, default=Path(__file__).parent)
    parser.add_argument("--figures", type=Path, default=Path(__file__).with_name("figures"))
    options = parser.parse_args()
    plan, _ = read_loop_plan(options.plan)
    rows, against, seen = (
        [dict(row) for row in read_rows(options.loop / f"{name}.jsonl")] for name in ("rows", "contrasts", "signs")
    )
    for title, table in (
        ("Against no training", outcomes(plan, rows, against)),
        ("What an evaluation on the log claims", claims(plan, rows)),
        ("Signs", signs(seen)),
    ):
        print(f"{title}\n\n{to_markdown(table)}\n")
    for name, kept in (("loop", False), ("loop-explore", True)):
        markets = [market for market, one in plan.markets.items() if len(one.arms) == 1 and bool(one.explore) == kept]
        if not any(row["market"] in markets for row in against):
            continue
        title = "What users were shown, a fifth of lists drawn" if kept else "What users were shown"
        write_file(options.figures / f"{name}.svg", loop_chart(against, plan, markets, title) + "\n")


def outcomes(plan: LoopPlan, rows: Sequence[Row], against: Sequence[Row]) -> Table:
    """A line an arm: the last three rounds against no training, and the last round's coverage and errors."""
    lines = []
    for market, arm in dict.fromkeys((row["market"], row["arm"]) for row in rows):
        last = [r for r in rows if (r["market"], r["arm"], r["round"]) == (market, arm, plan.rounds)]
        if not last:
            continue
        found = [r for r in against if (r["market"], r["arm"], r["round"]) == (market, arm, "last")]
        means = [_mean(last, name) for name in ("coverage", "gini", "new_hallucination@10")]
        errors = [_mean(last, f"misordered_q{quarter}") for quarter in (1, 4)]
        lines.append(
            (market, arm, str(len(last)), _difference(found), *(f"{100 * value:.1f} %" for value in (*means, *errors)))
        )
    head = (
        "market",
        "arm",
        "worlds",
        "utility, rounds 8-10",
        "coverage",
        "Gini",
        "invalid",
        "least shown",
        "most shown",
    )
    return Table(head, tuple(lines), ("left", "left", *("right",) * 7))


def claims(plan: LoopPlan, rows: Sequence[Row]) -> Table:
    """A line an arm: in how many rounds the log said that the new policy is better, and in how many users got more."""
    usual = {(r["world"], r["round"]): r["utility"] for r in rows if r["market"] == "none"}
    lines = []
    for market, arm in dict.fromkeys((row["market"], row["arm"]) for row in rows):
        own = {(r["world"], r["round"]): r for r in rows if (r["market"], r["arm"]) == (market, arm)}
        pairs = [(key, row) for key, row in own.items() if key[1] > 0 and key in usual and (key[0], key[1] - 1) in own]
        if not pairs or not plan.markets[market].arms:
            continue
        rewards = [row["new_mean_reward@10"] > row["old_mean_reward@10"] for _, row in pairs]
        hits = [row["new_hr@10"] - row["old_hr@10"] for _, row in pairs]
        moved = [
            row["utility"] / usual[key] - own[(key[0], key[1] - 1)]["utility"] / usual[(key[0], key[1] - 1)]
            for key, row in pairs
        ]
        up = np.array(moved) > 0
        lines.append(
            (
                *(market, arm, str(len(pairs)), str(int(sum(rewards))), str(int((np.array(hits) > 0).sum()))),
                *(str(int(up.sum())), str(int((np.array(rewards) & ~up).sum()))),
            )
        )
    head = ("market", "arm", "rounds", "reward up", "HR@10 up", "utility up", "reward up, utility down")
    return Table(head, tuple(lines), ("left", "left", *("right",) * 5))


def signs(seen: Sequence[Row]) -> Table:
    """A line a market of a world: when utility had fallen by more than 2 %, and the first day of each sign."""
    lines = [
        (
            *(row["world"], row["market"], row["arm"], str(row["days"]), _day(row["harmed"])),
            *(f"{_day(row[sign])} ({row[f'{sign}_days']})" for sign in SIGNS),
        )
        for row in seen
    ]
    head = ("world", "market", "arm", "days", "fallen", *(sign.replace("_", " ") for sign in SIGNS))
    return Table(head, tuple(lines), (*("left",) * 3, *("right",) * 6))


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def _day(day: int | None) -> str:
    return "-" if day is None else str(day)


def _difference(found: Sequence[Row]) -> str:
    if not found:
        return "-"
    row = found[0]
    ends = "" if row["low"] is None else f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"{100 * row['difference']:+.1f} %{ends}"


if __name__ == "__main__":
    main()
