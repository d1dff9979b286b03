"""How many users an A/B test and interleaving need to see the same difference, on the simulated marketplace.

    python -m research.interleaving.measure [--experiments 200]

Users and items are the simulator's, whose utilities are known. Two policies rank ten candidates of a visit by utility
seen with error; the treatment sees it with less. A user visits five times, examines place i with probability
1 / sqrt(i), and clicks an examined item with the probability of its utility.

    A/B             users in two halves, clicks a user; Welch's z
    interleaving    all users, team-draft lists; the mean of p_u against 1/2

Both are sized by N = ((1.96 + 0.84) s / d)² from a large simulation (times 4 for A/B, whose variance is that of two
halves), and the power at that N is then counted in experiments of that size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.simulation.marketplace import Marketplace, simulate
from research.command import run
from research.rows import add_row

__all__ = ["Visits", "drafted", "needed", "table", "trials", "visits"]

ROWS = Path(__file__).with_name("rows.jsonl")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CANDIDATES, PLACES, A_USER = 10, 5, 5
ERROR = 0.8  # of the control's view of log-utility
POOL = 1000  # sets of candidates
GAINS = (0.1, 0.2, 0.4)  # by how much less the treatment errs; shares of ERROR
Z = 1.959964 + 0.841621
LARGE = 80_000  # users of the simulation that sizes both


class Visits(NamedTuple):
    """Clicks of N users under each arm alone, and on the items of each in one list."""

    control: Floats  # (N,)
    treatment: Floats  # (N,) of the same users, had they been in that arm
    mixed: Floats  # (N, 2) clicks on items of control and treatment in interleaved lists
    expected: tuple[float, float]  # clicks a user of both arms, by their chances: the same with less noise


def drafted(
    rankings: Ints,  # (N, 2, C) items of both arms, best first
    flips: NDArray[np.bool_],  # (N, rounds) True where arm 0 picks first
    places: int,
) -> tuple[Ints, Ints]:
    """`adagrpo.experiments.interleaving.team_draft` of many lists: items and arms, both (N, places)."""
    rows = np.arange(len(rankings))
    free = np.ones((len(rankings), rankings.shape[2]), dtype=bool)  # by item
    items, teams = np.empty((len(rows), places), np.int64), np.empty((len(rows), places), np.int64)
    for place in range(places):
        picks_first = np.where(flips[:, place // 2], 0, 1)
        team = picks_first if place % 2 == 0 else 1 - picks_first
        mine = rankings[rows, team]  # (N, C)
        best = np.take_along_axis(free, mine, 1).argmax(1)  # the first that nobody has picked
        items[:, place], teams[:, place] = mine[rows, best], team
        free[rows, items[:, place]] = False
    return items, teams


def visits(utility: Floats, users: int, gain: float, draw: np.random.Generator) -> Visits:
    """Visits of users drawn at random from a world.

    Args:
        utility: (U, V) chance that a user wants an item.
        users: N.
        gain: see `GAINS`; 0 makes both arms alike.
        draw: of everything.
    """
    count = users * A_USER
    owners = np.repeat(draw.integers(len(utility), size=users), A_USER)
    pool = draw.random((POOL, utility.shape[1])).argpartition(CANDIDATES, 1)[:, :CANDIDATES]
    candidates = pool[draw.integers(POOL, size=count)]
    wanted = np.take_along_axis(utility[owners], candidates, 1)  # (M, C)
    views = [np.log(wanted + 0.05) + ERROR * (1 - g) * draw.normal(size=wanted.shape) for g in (0.0, gain)]
    rankings = np.stack([(-view).argsort(1) for view in views], 1)  # (M, 2, C)
    examined = 1 / np.sqrt(np.arange(1, PLACES + 1))
    chances = [np.take_along_axis(wanted, rankings[:, arm, :PLACES], 1) * examined for arm in (0, 1)]
    alone = [(draw.random(each.shape) < each).sum(1).reshape(users, A_USER).sum(1).astype(float) for each in chances]
    items, teams = drafted(rankings, draw.random((count, PLACES)) < 0.5, PLACES)
    clicks = draw.random(items.shape) < np.take_along_axis(wanted, items, 1) * examined
    mixed = [(clicks & (teams == arm)).sum(1).reshape(users, A_USER).sum(1) for arm in (0, 1)]
    expected = (float(chances[0].sum() / users), float(chances[1].sum() / users))
    return Visits(alone[0], alone[1], np.stack(mixed, 1).astype(float), expected)


def needed(seen: Visits) -> tuple[float, float]:
    """Users that an A/B test and interleaving need for 80 % power; interleaving counts those without a click too."""
    spread = (seen.control.var(ddof=1) + seen.treatment.var(ddof=1)) / 2
    ab = 4 * spread * (Z / (seen.expected[1] - seen.expected[0])) ** 2
    total = seen.mixed.sum(1)
    shares = seen.mixed[total > 0, 1] / total[total > 0]
    mixed = shares.var(ddof=1) * (Z / (shares.mean() - 0.5)) ** 2 / (total > 0).mean()
    return float(ab), float(mixed)


def trials(utility: Floats, users: int, gain: float, count: int, draw: np.random.Generator) -> tuple[float, float]:
    """Shares of experiments of so many users in which A/B and interleaving find the treatment better."""
    found = np.zeros(2)
    for _ in range(count):
        seen = visits(utility, users, gain, draw)
        half = users // 2
        a, b = seen.control[:half], seen.treatment[half:]
        error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
        found[0] += (b.mean() - a.mean()) / error > 1.959964
        total = seen.mixed.sum(1)
        shares = seen.mixed[total > 0, 1] / total[total > 0]
        found[1] += (shares.mean() - 0.5) / (shares.std(ddof=1) / math.sqrt(len(shares))) > 1.959964
    return float(found[0] / count), float(found[1] / count)


def _rows(experiments: int) -> Iterator[dict[str, Any]]:
    truth = simulate(Marketplace(users=1000, items=100, seed=0)).truth
    people, things = np.arange(len(truth.user_ids)), np.arange(len(truth.item_ids))
    utility = truth.utility(people, np.broadcast_to(things, (len(people), len(things))).copy())
    draw = np.random.default_rng(0)
    for gain in GAINS:
        seen = visits(utility, LARGE, gain, draw)
        ab, mixed = needed(seen)
        total = seen.mixed.sum(1)
        share = float((seen.mixed[total > 0, 1] / total[total > 0]).mean())
        size = round(mixed)
        power_ab, power_mixed = trials(utility, size, gain, experiments, draw)
        yield {
            "gain": gain, "lift": seen.expected[1] / seen.expected[0] - 1, "share": share,
            "users_ab": round(ab), "users_interleaving": size, "power_interleaving": power_mixed,
            "power_ab_at_that_size": power_ab, "experiments": experiments,
        }  # fmt: skip
    wrong_ab, wrong_mixed = trials(utility, 400, 0.0, experiments, draw)
    yield {"gain": 0.0, "false_ab": wrong_ab, "false_interleaving": wrong_mixed, "experiments": experiments}


def table(rows: list[dict[str, Any]]) -> str:
    """The table of the page."""
    lines = [
        "| lift in clicks | preference | users, A/B | users, interleaving | A/B needs | power of interleaving |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['lift']:+.2%} | {row['share']:.1%} | {row['users_ab']:,} | {row['users_interleaving']:,} |"
        f" {row['users_ab'] / row['users_interleaving']:.0f} times | {row['power_interleaving']:.1%} |"
        for row in rows
        if row["gain"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, write the rows anew and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=200)
    options = parser.parse_args()
    rows = list(_rows(options.experiments))
    ROWS.unlink(missing_ok=True)
    for row in rows:
        add_row(ROWS, row)
    print(table(rows))
    print(rows[-1])


if __name__ == "__main__":
    run(main)
