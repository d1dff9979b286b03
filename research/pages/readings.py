"""Tables beside those of the fair trial.

The first rung of its tuning, what gates let through, what diagnose says, and hard cases by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from adagrpo.report.comparison_page import format_difference, format_ends
from adagrpo.report.tables import MISSING, Alignment, Table, format_metric
from research.worlds_pooled import shown, signed

__all__ = ["admitted_table", "diagnosed_table", "hard_table", "matched_table"]

METRIC = "hr@10"
GATES = (("-gate", "-random"), ("-gate", ""), ("-random", ""))  # the first less the second
SAID = {"-gate": "the earlier gate", "-random": "a random gate", "": "no gate"}


def matched_table(rungs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """One row a difference of gates, one column a set: the mean over all settings of the first rung, and its signs.

    Two rows of a difference have the same objective, pressure, rollouts and place, and differ in the gate alone.

    Args:
        rungs: rows of `research.fair_trial.tune`, by set.
    """
    cells = []
    for one, other in GATES:
        found = [_differences(rows, one, other) for rows in rungs.values()]
        line = [
            f"{signed(fmean(values), 2)} ({sum(v > 0 for v in values)} up, {sum(v < 0 for v in values)} down)"
            for values in found
        ]
        mean = shown([(fmean(values), 0.0) for values in found], 1, 2)
        cells.append((f"{SAID[one]} minus {SAID[other]}", *line, mean))
    header = ("points of HR@10", *rungs, "mean over sets")
    return Table(header, tuple(cells), _alignment(len(header)))


def admitted_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row an arm of the earlier gate, means over seeds: what it admitted, and why not the rest.

    Args:
        rows: of `research.fair_trial.admitted`.
    """
    names = ("admission", "shuffled_admission", "rejected_easy", "contains_target", "admitted_contains_target")
    cells = []
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"].endswith("-gate")):
        mine = [row for row in rows if row["arm"] == arm]
        known = [[row[name] for row in mine if row[name] is not None] for name in names]
        cells.append((arm, *(format_metric(METRIC, fmean(values)) if values else MISSING for values in known)))
    header = (
        "arm",
        "admitted",
        "with shuffled rewards",
        "already easy",
        "groups with the logged item",
        "admitted groups with it",
    )
    return Table(header, tuple(cells), _alignment(len(header)))


def _alignment(columns: int) -> tuple[Alignment, ...]:
    right: list[Alignment] = ["right"] * (columns - 1)
    return ("left", *right)


def diagnosed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a set: the verdict, what it rests on, and how much the earlier gate admits where that was measured.

    Args:
        rows: of `research.fair_trial.diagnosed`.
    """
    cells = []
    for row in rows:
        orders = [_with_interval(row["evidence"][name]) for name in ("adds", "leads")]
        named = MISSING if row.get("tau") is None else f"tau {row['tau']:g}, q_min {row['q_min']:g}"
        names = ("admission", "shuffled_admission")
        shares = [format_metric(METRIC, row["gate"]["sample"][name]) if "gate" in row else MISSING for name in names]
        cells.append(
            (
                row["set"],
                f"{row['cases']:,}",
                row["decision"],
                "yes" if row["reached"] else "no",
                *orders,
                named,
                *shares,
            )
        )
    header = (
        "set",
        "validation cases",
        "said",
        "reached by the cases",
        "policy and ranker, Δ NDCG@10",
        "ranker alone, weighted by exposure, Δ NDCG@10",
        "gate it names",
        "groups the earlier gate admits",
        "with shuffled rewards",
    )
    return Table(header, tuple(cells), _alignment(len(header)))


def hard_table(rows: Sequence[Mapping[str, Any]], less: str | None = None) -> Table:
    """One row a pair of arms, one column a stratum: their difference in points, with its interval.

    Args:
        rows: of `research.fair_trial.hard_cases`.
        less: the arm that others are held against; None: gates against each other.
    """
    kept = [row for row in rows if (row["other"] == less if less else row["other"] != row["of"])]
    strata = {row["stratum"]: fmean(row["users"]) for row in rows}
    found = {(row["arm"], row["other"], row["stratum"]): row["against"][METRIC] for row in kept}
    cells = []
    for pair in dict.fromkeys((row["arm"], row["other"]) for row in kept):
        values = [found.get((*pair, stratum)) for stratum in strata]
        cells.append((pair[0] if less else " minus ".join(pair), *map(_in_points, values)))
    sizes = (f"{stratum}: {users:,.0f} cases" for stratum, users in strata.items())
    return Table((f"arm less {less}" if less else "arms", *sizes), tuple(cells), _alignment(1 + len(strata)))


def _in_points(against: Mapping[str, Any] | None) -> str:
    if against is None:
        return MISSING
    return f"{format_difference(METRIC, against['difference'])} ({format_ends(METRIC, against['interval'])})"


def _with_interval(found: Mapping[str, float]) -> str:
    mean, low, high = (signed(found[name], 4) for name in ("mean", "low", "high"))
    return f"{mean} ({low} … {high})"


def _differences(rows: Sequence[Mapping[str, Any]], one: str, other: str) -> list[float]:
    """In points, one a setting that both have."""
    keys = ("pressure", "rollouts", "positions")
    first = {
        (row["family"], *(row[key] for key in keys)): 100 * row["final"][METRIC] for row in rows if row["rung"] == 0
    }
    gated = [(name, setting) for name, *setting in first if name.endswith(one)]
    pairs = [((name, *setting), (name.removesuffix(one) + other, *setting)) for name, setting in gated]
    return [first[here] - first[there] for here, there in pairs if there in first]
