"""Tables of the study: what each list is worth, and the regret of the choice and of always the same list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.lists.names import START
from adagrpo.statistics import mean_interval
from research.decisions.shops import upper_share

CHOICE, HIGHEST, ALL = "the choice", "the highest on validation of those left", "all"
TITLES = (
    "True utility@10, means over runs",
    "The best list by truth, and what was chosen",
    "Regret of the choice and of always the same list, means over seeds, 95 % intervals over worlds",
    "Worlds in which the choice is below the starting policy, with the exact bound of their share",
)
COMMANDS = """\
```
python -m research.worlds --out runs/worlds
python -m research.worlds --table
```"""

Values = NDArray[np.float64]
Rows = Sequence[Mapping[str, Any]]


def tables(rows: Rows) -> list[str]:
    """All of them, of the rows of `worlds.jsonl`."""
    if not rows:
        return ["no rows yet"]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)}
    whole = kinds | {ALL: rows}
    return [utility_table(kinds), best_table(whole), regret_table(whole), below_table(whole), goals(rows)]


def page(rows: Rows) -> str:
    """The page of tables of the rows of `worlds.jsonl`."""
    titled = [f"## {title}\n\n{table}" for title, table in zip(TITLES, tables(rows)[:-1], strict=True)]
    return "\n\n".join(["# Shops of several kinds", COMMANDS, *titled]) + "\n"


def utility_table(kinds: Mapping[str, Rows]) -> str:
    """Mean true utility@10 of each list, over runs."""
    names = dict.fromkeys(name for rows in kinds.values() for row in rows for name in row["utility"])
    lines = []
    for kind, rows in kinds.items():
        lists = [[row["utility"][name] for row in rows if name in row["utility"]] for name in names]
        lines.append([kind, f"{len(rows)}", *(f"{np.mean(values):.4f}" if values else "–" for values in lists)])
    return _written(["true utility@10", "runs", *names], lines)


def best_table(kinds: Mapping[str, Rows]) -> str:
    """Which list is the best by truth in how many runs, and which was chosen."""
    lines = []
    for kind, rows in kinds.items():
        best = [max(row["utility"], key=row["utility"].__getitem__) for row in rows]
        right = sum(row["chosen"] == name for row, name in zip(rows, best, strict=True))
        counts = [Counter(names).most_common() for names in (best, [row["chosen"] for row in rows])]
        told = [", ".join(f"{name} {count}" for name, count in one) for one in counts]
        lines.append([kind, f"{len(rows)}", *told, f"{right}"])
    return _written(["kind", "runs", "best by truth", "chosen", "the best was chosen"], lines)


def regret_table(kinds: Mapping[str, Rows]) -> str:
    """Regret in percent of the best list's utility: means over seeds of a world, with intervals over worlds."""
    found = {kind: regrets(rows) for kind, rows in kinds.items()}
    lines = []
    for name in dict.fromkeys(name for one in found.values() for name in one):
        cells = [
            _interval(100 * of_worlds(rows, found[kind][name])) if name in found[kind] else "–"
            for kind, rows in kinds.items()
        ]
        lines.append([name if name in (CHOICE, HIGHEST) else f"always {name}", *cells])
    return _written(["regret, %", *kinds], lines)


def below_table(kinds: Mapping[str, Rows]) -> str:
    """In how many worlds the choice is below the starting policy, and the exact upper bound of their share at 95 %."""
    lines = []
    for kind, rows in kinds.items():
        gained = gained_on_start(rows)
        worlds = of_worlds(rows, gained)
        below = int((worlds < 0).sum())
        share, bound = f"{below / len(worlds):.1%}", f"{upper_share(below, len(worlds)):.1%}"
        lines.append([kind, f"{below} of {len(worlds)}", share, bound, f"{(gained < 0).sum()} of {len(rows)}"])
    return _written(["kind", f"below {START} in worlds", "share", "at most", "in runs"], lines)


def goals(rows: Rows) -> str:
    """The goals of the plan, beside what was found."""
    mean = {name: float(of_worlds(rows, values).mean()) for name, values in regrets(rows).items()}
    constant = min((name for name in mean if name not in (CHOICE, HIGHEST)), key=mean.__getitem__)
    worlds = of_worlds(rows, gained_on_start(rows))
    below = int((worlds < 0).sum())
    return (
        f"Regret of the choice {mean[CHOICE]:.2%}, of the best constant policy, always {constant},"
        f" {mean[constant]:.2%}; the goal is at most {mean[constant] / 2:.2%}.\n"
        f"Below {START} in {below / len(worlds):.1%} of the worlds, by the bound in at most"
        f" {upper_share(below, len(worlds)):.1%}; the goal is at most 5 %."
    )


def regrets(rows: Rows) -> dict[str, Values]:
    """(N,) one less utility as a share of the best list's by truth.

    Of the choice, of the list with the highest NDCG@10 on validation of those that no order of shown items excludes,
    and of lists that all runs have.
    """
    best = np.array([max(row["utility"].values()) for row in rows])
    names = [name for name in rows[0]["utility"] if all(name in row["utility"] for row in rows)]
    utility = {CHOICE: [row["utility"][row["chosen"]] for row in rows]}
    utility[HIGHEST] = [row["utility"][row["best"]] for row in rows]
    utility |= {name: [row["utility"][name] for row in rows] for name in names}
    return {name: 1 - np.array(values) / best for name, values in utility.items()}


def gained_on_start(rows: Rows) -> Values:
    """(N,) utility of the choice less that of the starting policy."""
    return np.array([row["utility"][row["chosen"]] - row["utility"][START] for row in rows])


def of_worlds(rows: Rows, values: Values) -> Values:
    """(W,) means over the seeds of each world."""
    seeds: dict[tuple[str, int], list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        seeds.setdefault((row["kind"], row["world"]), []).append(value)
    return np.array([np.mean(one) for one in seeds.values()])


def _interval(worlds: Values) -> str:
    if len(worlds) < 2:
        return f"{worlds.mean():.1f}"
    mean, low, high, _ = mean_interval(worlds)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _written(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))
