"""The second trial of the paper's gate on pages: ratios of invalid Semantic IDs, and gates beside turning λ down.

All of it is refused before each seed of each set is done, see `research.paper_gate.ratio`. A seed renews everything, so
intervals are Student's over seeds, and only the primary comparison has a p-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from adagrpo.report.charts import GREY, INK, METHODS, SURFACE, draw
from adagrpo.report.page import read_rows
from adagrpo.report.tables import MISSING, Table, format_metric, format_p
from adagrpo.statistics import Interval, seed_interval
from research.figures.public_sets import SETS
from research.pages.frontier import LEVEL, least_effect
from research.paper_gate.ratio import INVALID, ROWS, log_ratios, primary_test, read_plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["beside_curve", "ratio_arms", "ratio_picture", "ratio_table", "read_ratio"]

HR, NDCG = "hr@10", "ndcg@10"
CALLED = SETS | {"amazon-office": "Office"}
PRIMARY = "paper-a", "random-a"
SECONDARY = (
    ("paper-b", "random-b"),
    ("paper-c", "random-c"),
    ("paper-a", "variance-a"),
    ("random-a", "none-1"),
    ("paper-b", "none-1"),
)
CURVE = ("nll", "none-0.1", "none-0.3", "none-1")  # of rising λ
STRENGTHS = {"a": "ratio of gradients 1", "b": "λ as without a gate", "c": "λ over admission"}
GATES = {"paper": METHODS["adagrpo"], "random": GREY, "variance": METHODS["mixture"]}
MARKS = {"a": "s", "b": "o", "c": "^"}
WIDTH, ROW = 880, 270  # pixels: the picture, a row of panels

Rows = Sequence[Mapping[str, Any]]


def read_ratio() -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The plan, and its rows once all of them are there.

    Raises:
        UserError: some are not.
    """
    plan = read_plan()
    rows = list(read_rows(ROWS))
    primary_test(plan, rows)
    return plan, rows


def ratio_table(plan: Mapping[str, Any], rows: Rows, short: bool = False) -> Table:
    """A line a set and pair of arms: their shares of invalid Semantic IDs, both rollouts, and the ratio's mean.

    *Found*: the ratio nearest to 1 that the test finds in four of five trials, at the first step of Holm's correction.

    Args:
        plan: the content of ratio.yaml.
        rows: of all sets.
        short: the primary comparison alone.
    """
    tested, lines = {row["dataset"]: row for row in primary_test(plan, rows)}, []
    for name, found in tested.items():
        mine = [row for row in rows if row["dataset"] == name]
        for one, other in (PRIMARY, *(() if short else SECONDARY)):
            logs = log_ratios(mine, one, other)
            ends = _ratio(seed_interval([*logs.values()]))
            own = [row for row in mine if row["seed"] in logs]
            shares = [_share([row for row in own if row["arm"] == arm]) for arm in (one, other)]
            hits = [_over_rollouts(own, seed, one) - _over_rollouts(own, seed, other) for seed in logs]
            cells = (MISSING, MISSING)
            if (one, other) == PRIMARY:
                least = least_effect(stdev(logs.values()), len(logs), LEVEL / len(tested))
                cells = format_p(found["p_holm"]), f"{np.exp(-least):.2f}"
            about = CALLED[name], f"{one} over {other}", f"{len(logs)}"
            lines.append((*about, *shares, ends, *cells, _points(seed_interval(hits))))
    heads = "set", "arms", "seeds", "invalid@10 of the first", "of the second", "ratio", "p, Holm", "found"
    return Table.of((*heads, "HR@10, first less second, points"), lines, 2)


def _over_rollouts(rows: Rows, seed: int, arm: str) -> float:
    return fmean(row["metrics"][HR] for row in rows if (row["seed"], row["arm"]) == (seed, arm))


def _share(rows: Rows) -> str:
    return format_metric(INVALID, fmean(row["metrics"][INVALID] for row in rows))


def ratio_arms(rows: Rows) -> Table:
    """A line a set, kind of rollouts and arm: means over seeds, differences from continued NLL with intervals.

    Args:
        rows: of all sets.
    """
    lines = []
    for name, rollouts, arm in _settings(rows):
        mine = [row for row in rows if (row["dataset"], row["rollouts"], row["arm"]) == (name, rollouts, arm)]
        moved = [_points(seed_interval([row["less_nll"][metric][0] for row in mine])) for metric in (HR, NDCG)]
        about = [f"{fmean(row['lambda'] for row in mine):.3g}", format_metric("admission", _mean(mine, "admission"))]
        lines.append((CALLED[name], rollouts, arm, f"{len(mine)}", *about, *moved, _share(mine)))
    heads = ("set", "rollouts", "arm", "seeds", "λ", "admitted", "HR@10, points", "NDCG@10, points", "invalid@10")
    return Table.of(heads, lines, 3)


def _ratio(logs: Interval) -> str:
    return f"{np.exp(logs.mean):.2f} ({np.exp(logs.low):.2f} to {np.exp(logs.high):.2f})"


def _settings(rows: Rows) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row["dataset"], row["rollouts"], row["arm"]) for row in rows if row["rollouts"]))


def _mean(rows: Rows, name: str) -> float:
    return fmean(row[name] for row in rows)


def _points(over: Interval) -> str:
    text = f"{100 * over.mean:+.2f} ({100 * over.low:+.2f} to {100 * over.high:+.2f})"
    return text.replace("-", "\N{MINUS SIGN}")


def beside_curve(rows: Rows, short: bool = False) -> Table:
    """What gates have over no gate with λ turned down to as many invalid Semantic IDs, in points of HR@10.

    Of a seed and kind of rollouts, HR@10 of continued NLL and of no gate at .1, .3 and 1 λ0 is interpolated in their
    invalid shares; a share beyond the ends counts as the end.

    Args:
        rows: of all sets.
        short: gates at λ0 alone, with those of other strengths otherwise.
    """
    lines = []
    gates = ("paper-b", "random-b", *(() if short else ("paper-a", "random-a", "variance-a", "paper-c", "random-c")))
    for name, gate in product(dict.fromkeys(row["dataset"] for row in rows), gates):
        over: dict[int, list[float]] = {}
        for rollouts in dict.fromkeys(row["rollouts"] for row in rows if row["rollouts"]):
            mine = [row for row in rows if row["dataset"] == name and row["rollouts"] in (rollouts, None)]
            for seed in dict.fromkeys(row["seed"] for row in mine if row["arm"] == gate):
                found = {row["arm"]: row["metrics"] for row in mine if row["seed"] == seed}
                if not {*CURVE} <= {*found}:
                    continue
                curve = np.array(sorted((found[arm][INVALID], found[arm][HR]) for arm in CURVE))
                there = float(np.interp(found[gate][INVALID], curve[:, 0], curve[:, 1]))
                over.setdefault(seed, []).append(found[gate][HR] - there)
        seeds = [fmean(one) for one in over.values()]
        lines.append((CALLED[name], gate, f"{len(seeds)}", _points(seed_interval(seeds))))
    return Table.of(("set", "gate", "seeds", "HR@10 over no gate at a lower λ, points"), lines, 2)


def ratio_picture(rows: Rows) -> str:
    """Draw a row of two panels a set: HR@10 over NLL against invalid Semantic IDs, no gate as a curve of rising λ.

    Args:
        rows: of all sets.
    """
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    kinds = list(dict.fromkeys(row["rollouts"] for row in rows if row["rollouts"]))
    places = {}
    for name, rollouts, arm in [(name, rollouts, "nll") for name in names for rollouts in kinds] + _settings(rows):
        own = rollouts if arm != "nll" else None
        mine = [row for row in rows if (row["dataset"], row["rollouts"], row["arm"]) == (name, own, arm)]
        gained = 0.0 if arm == "nll" else 100 * fmean(row["less_nll"][HR][0] for row in mine)
        places[name, rollouts, arm] = 100 * fmean(row["metrics"][INVALID] for row in mine), gained

    def paint(axes: Axes) -> None:
        axes.plot([], [], "o-", color=INK, mfc=SURFACE, label="no gate: NLL, then λ of .1, .3 and 1")
        for gate, color in GATES.items():
            axes.plot([], [], "o", color=color, label=f"{gate} gate")
        for strength, said in STRENGTHS.items():
            axes.plot([], [], MARKS[strength], color=SURFACE, mec=INK, label=said)
        axes.axis("off")
        spec = axes.get_subplotspec()
        assert spec is not None
        panels = spec.subgridspec(len(names), len(kinds))
        for (line, name), (column, rollouts) in product(enumerate(names), enumerate(kinds)):
            panel = axes.figure.add_subplot(panels[line, column])
            panel.axhline(0, color=INK, lw=1)
            panel.plot(*zip(*(places[name, rollouts, arm] for arm in CURVE), strict=True), "o-", color=INK, mfc=SURFACE)
            for (data, kind, arm), (x, y) in places.items():
                gate, _, strength = arm.partition("-")
                if (data, kind) == (name, rollouts) and gate in GATES:
                    panel.plot([x], [y], MARKS[strength], color=GATES[gate], ms=9)
            panel.set_title(f"{CALLED[name]}, {rollouts}")
            panel.set_xlim(left=0)
            panel.grid()
            panel.set_xlabel("invalid Semantic IDs in the first ten of a free beam, %", loc="right")
            if column == 0:
                panel.set_ylabel("HR@10 over NLL, points")

    said = "; ".join(f"{CALLED[n]}, {k}, {arm}: {y:+.2f} points, {x:.2f} %" for (n, k, arm), (x, y) in places.items())
    title = "Gates beside a lower weight of the reward: HR@10 over NLL, and invalid Semantic IDs"
    return draw(title, said, paint, width=WIDTH, height=ROW * len(names), notes="Means over seeds")
