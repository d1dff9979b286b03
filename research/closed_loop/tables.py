"""Writes the tables and charts of the study from the rows of `research.closed_loop`, and nothing else.

    python -m research.closed_loop.tables             the marked tables of tables.md and the charts
    python -m research.closed_loop.tables --check     ends with 1 where they are not what the rows say

Without `--loop FOLDER`, which takes the rows of a loop over into the study first. A value of a market is the mean over
the worlds in which its last round is finished.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adagrpo.monitoring import SIGNS
from adagrpo.report.page import read_rows
from adagrpo.report.tables import Table
from adagrpo.storage.writing import write_file
from research.closed_loop.loop_summary import ALL, loop_chart, reference_of
from research.closed_loop.plan import LoopPlan, read_loop_plan
from research.command import run
from research.marked_tables import with_marked

__all__ = ["alone", "canaries", "claims", "main", "outcomes", "signs", "trials", "written"]

Row = dict[str, Any]
STUDY = Path(__file__).parent
LABEL = "loop"
NAMES = {
    name + end: label
    for end in ("", "-explore")
    for name, label in (
        ("mixture", "mixture"),
        ("nll", "continued NLL"),
        ("gate", "the earlier gate"),
        ("distill", "distill-tuned"),
        ("grpo", "GRPO without NLL"),
    )
}
LAST = ("last", "none")  # rounds, and the market that it is held against
TAKEN = ("rows", "contrasts", "experiments", "signs", "canaries")
CHARTS = {
    "loop": (0.0, "Simulated: GRPO without NLL loses three quarters in two rounds; no arm beats continued NLL"),
    "loop-explore": (0.2, "Simulated: with a fifth of the lists drawn at random, the harm is the same"),
}


def main() -> None:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", type=Path, help="folder of a loop whose rows are taken over first")
    parser.add_argument("--stationary", type=Path, help="folder of the loop of stationary.yaml, likewise")
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    for name in TAKEN if options.loop else ():
        shutil.copyfile(options.loop / f"{name}.jsonl", STUDY / f"{name}.jsonl")
    if options.stationary:
        shutil.copyfile(options.stationary / "signs.jsonl", STUDY / "stationary-signs.jsonl")
    made = written()
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if options.check:
        sys.exit(f"{', '.join(path.name for path in stale)}: not what the rows say" if stale else 0)
    for path in stale:
        write_file(path, made[path])


def written() -> Mapping[Path, str]:
    """What the tables and the charts of the study should hold."""
    plan, _ = read_loop_plan(STUDY / "plan.yaml")
    rows, against, seen, first, tested = (
        [dict(row) for row in read_rows(STUDY / f"{name}.jsonl")]
        for name in ("rows", "contrasts", "signs", "canaries", "experiments")
    )
    still = [dict(row) for row in read_rows(STUDY / "stationary-signs.jsonl")]
    page = STUDY / "tables.md"
    tables = {
        "markets": outcomes(plan, rows, against),
        "claims": claims(plan, rows),
        "trials": trials(tested),
        "alone": alone(plan, against),
        "signs": signs(seen),
        "stationary": signs(still),
        "canaries": canaries(plan, first, against),
    }
    made = {page: with_marked(page.read_text(encoding="utf-8"), LABEL, tables)}
    for name, (explore, title) in CHARTS.items():
        markets = [
            market
            for market, one in plan.markets.items()
            if len(one.arms) == 1 and one.explore == explore and one.canary is None
        ]
        chart = loop_chart(against, plan, sorted(markets, key=list(NAMES).index), title, NAMES)
        made[STUDY / "figures" / f"{name}.svg"] = chart
    return made


def outcomes(plan: LoopPlan, rows: Sequence[Row], against: Sequence[Row]) -> Table:
    """A line an arm: the last three rounds against no training and continued NLL, coverage and errors of the last."""
    lines = []
    for market, arm in dict.fromkeys((row["market"], row["arm"]) for row in rows):
        last = [r for r in rows if (r["market"], r["arm"], r["round"]) == (market, arm, plan.rounds)]
        if not last or plan.markets[market].canary is not None:
            continue
        found = [r for r in against if (r["market"], r["arm"], r["round"]) == (market, arm, "last")]
        usual = reference_of(plan, market)
        both = ([r for r in found if r["against"] == usual], [r for r in found if r["against"] != usual])
        means = [_mean(last, name) for name in ("coverage", "gini", "new_hallucination@10")]
        errors = [_mean(last, f"misordered_q{quarter}") for quarter in (1, 4)]
        shares = (f"{100 * value:.0f} %" for value in (means[0], means[2], *errors))
        coverage, invalid, least, most = shares
        lines.append((market, arm, *map(_difference, both), coverage, f"{means[1]:.2f}", invalid, least, most))
    head = ("market", "arm", "utility against no training", "against continued NLL", "coverage", "Gini", "invalid")
    return Table((*head, "least shown", "most shown"), tuple(lines), ("left", "left", *("right",) * 7))


def alone(plan: LoopPlan, against: Sequence[Row]) -> Table:
    """The arms of an A/B in one market, and the same arms in markets of their own, in the last three rounds."""
    lines = []
    for market, one in plan.markets.items():
        for arm in one.arms if len(one.arms) > 1 else ():
            own = next((n for n, m in plan.markets.items() if (m.arms, m.explore, m.canary) == ((arm,), 0.0, None)), "")
            found = [
                [r for r in against if (r["market"], r["arm"], r["round"], r["against"]) == (n, arm.name, *LAST)]
                for n in (own, market)
            ]
            lines.append((arm.name, *map(_difference, found)))
    return Table(("arm", "in a market of its own", "beside the other arm"), tuple(lines), ("left", "right", "right"))


def trials(found: Sequence[Row]) -> Table:
    """What A/B tests within one market say, world by world."""
    lines = []
    for row in found:
        span = f"{100 * row['difference']:+.1f} % ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        says = "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "unclear"
        lines.append((row["world"], row["worth"], f"{row['users']:,}", span, says))
    head = ("world", "measured by", "users", "second arm against the first", "says")
    return Table(head, tuple(lines), ("left", "left", "right", "right", "left"))


def canaries(plan: LoopPlan, first: Sequence[Row], against: Sequence[Row]) -> Table:
    """A line a market with a canary: new policies, what stopped them, what was lost meanwhile, and in the end."""
    lines = []
    for market in dict.fromkeys(row["market"] for row in first):
        own = [row for row in first if row["market"] == market]
        lost = [row["lost"] for row in own if row["stopped"]]
        worst = f"{100 * max(0.0, *lost):.1f} %" if lost else "-"
        ends = [
            r
            for r in against
            if (r["market"], r["arm"], r["round"], r["against"]) == (market, ALL, "last", reference_of(plan, market))
        ]
        counts = (str(sum(row[sign] is not None for row in own)) for sign in SIGNS)
        worth = f"{100 * _mean(own, 'truth'):+.1f} %"
        stopped = str(sum(row["stopped"] for row in own))
        lines.append((market, str(len(own)), *counts, stopped, worth, worst, _difference(ends)))
    names = (sign.replace("_", " ") for sign in SIGNS)
    head = ("market", "policies", *names, "stopped", "their lists", "most lost", "all lists, rounds 8-10")
    return Table(head, tuple(lines), ("left", *("right",) * 9))


def claims(plan: LoopPlan, rows: Sequence[Row]) -> Table:
    """A line an arm: in how many rounds the log said that the new policy is better, and in how many users got more."""
    usual = {(r["world"], r["round"]): r["utility"] for r in rows if r["market"] == "none"}
    lines = []
    for market, arm in dict.fromkeys((row["market"], row["arm"]) for row in rows):
        own = {(r["world"], r["round"]): r for r in rows if (r["market"], r["arm"]) == (market, arm)}
        pairs = [(key, row) for key, row in own.items() if key[1] > 0 and key in usual and (key[0], key[1] - 1) in own]
        if not pairs or not plan.markets[market].arms or plan.markets[market].canary is not None:
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
    """A line an arm: the day on which utility had fallen by more than 2 %, and the first of each sign, by world."""
    lines = []
    for market, arm in dict.fromkeys((row["market"], row["arm"]) for row in seen):
        own = [row for row in seen if (row["market"], row["arm"]) == (market, arm)]
        lines.append((market, arm, *(", ".join(_day(row[name]) for row in own) for name in ("harmed", *SIGNS))))
    head = ("market", "arm", "utility 2 % below", *(sign.replace("_", " ") for sign in SIGNS))
    return Table(head, tuple(lines), (*("left",) * 2, *("right",) * 5))


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
    run(main)
