"""The tables of a comparison, from `comparison.json`, with rates in per cent and differences in percentage points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.evaluation.comparison import reported
from adagrpo.metrics import ReportPart, is_rate, metric_names
from adagrpo.report.tables import (
    MISSING,
    Table,
    format_metric,
    format_number,
    format_p,
    metric_label,
    metric_table,
)

KINDS = {"both": "users and seeds", "users": "users", "seeds": "seeds"}


def comparison_tables(content: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Return all tables that have rows, with their titles."""
    named = [
        ("Against the baseline", comparison_table(content)),
        ("Against the baseline in true utility@10", _true_utility(content)),
        ("Arms against each other", pairs_table(content)),
        ("Margins", _margins(content)),
        ("Head, tail and breadth (means over seeds)", _breadth(content)),
        (f"Difference in {metric_label(content['plan']['metric'])} by seed", _by_seed(content)),
        ("What each arm was", _arms(content)),
    ]
    return [(title, table) for title, table in named if table.rows]


def comparison_table(content: Mapping[str, Any]) -> Table:
    """Tabulate arms and checkpoints, with intervals over seeds and differences from the baseline."""
    metric, baseline, kinds = content["plan"]["metric"], content["plan"]["baseline"], interval_kinds(content)
    unit = " (points)" if is_rate(metric) else ""
    header = ["arm", "checkpoint", "verdict", metric_label(metric), "± seeds", f"vs {baseline}{unit}"]
    first, *others = _over(content)
    header += [first, "p, Holm", *others]
    rows = []
    for row in content["rows"]:
        test, against = row["test"][metric], row["against"].get(metric)
        cells = [
            row["arm"],
            row["checkpoint"],
            row["verdict"],
            format_metric(metric, test["mean"]),
            _half(metric, test),
        ]
        difference, ends = MISSING, [MISSING] * len(kinds)
        if against is not None:
            difference = format_difference(metric, against["difference"])
            ends = [format_ends(metric, against.get(kind)) for kind in kinds]
        p = MISSING if row["p_holm"] is None else format_p(row["p_holm"])
        rows.append((*cells, difference, ends[0], p, *ends[1:]))
    return Table.of(header, rows, 3)


def interval_kinds(content: Mapping[str, Any]) -> list[str]:
    """Return the kinds of interval of the differences, the preferred one first."""
    both = any("both" in against for row in content["rows"] for against in row["against"].values())
    return ["both", "users", "seeds"] if both else ["users", "seeds"]


def _over(content: Mapping[str, Any]) -> list[str]:
    return [f"{100 * content['plan']['level']:g} % over {KINDS[kind]}" for kind in interval_kinds(content)]


def _true_utility(content: Mapping[str, Any]) -> Table:
    name, kinds = "true_utility@10", interval_kinds(content)
    rows = []
    for row in content["rows"]:
        if name in row["against"]:
            against = row["against"][name]
            intervals = [format_ends(name, against.get(kind)) for kind in kinds]
            cells = (
                format_metric(name, row["test"][name]["mean"]),
                format_difference(name, against["difference"]),
                *intervals,
            )
            rows.append((row["arm"], row["checkpoint"], *cells))
    header = ["arm", "checkpoint", metric_label(name), f"vs {content['plan']['baseline']}", *_over(content)]
    return Table.of(header, rows, 2)


def pairs_table(content: Mapping[str, Any]) -> Table:
    """Tabulate the planned pairs: the first arm less the second, with intervals."""
    metric, kinds = content["plan"]["metric"], interval_kinds(content)
    rows = []
    for row in content.get("pairs", ()):
        against = row["against"][metric]
        first, *others = [format_ends(metric, against.get(kind)) for kind in kinds]
        difference = format_difference(metric, against["difference"])
        names = (f"{row['arm']} minus {row['other']}", row["checkpoint"])
        rows.append((*names, difference, first, format_p(row["p_holm"]), *others))
    unit = " (points)" if is_rate(metric) else ""
    first, *others = _over(content)
    header = ["arms", "checkpoint", f"{metric_label(metric)}{unit}", first, "p, Holm", *others]
    return Table.of(header, rows, 2)


def _margins(content: Mapping[str, Any]) -> Table:
    names, over = list(content["plan"]["margins"]), KINDS[interval_kinds(content)[0]]
    header = ["arm", "checkpoint"]
    for name in names:
        size = format_size(name, content["plan"]["margins"][name])
        header += [f"{metric_label(name)} vs {content['plan']['baseline']}", f"over {over}", f"within {size}"]
    rows = []
    for row in content["rows"]:
        if row["margins"]:
            cells = [row["arm"], row["checkpoint"]]
            for name in names:
                margin, against = row["margins"][name], row["against"][name]
                cells += [format_difference(name, against["difference"]), format_ends(name, reported(against))]
                cells += ["yes" if margin["kept"] else "not shown"]
            rows.append(tuple(cells))
    return Table.of(header, rows, 2)


def _breadth(content: Mapping[str, Any]) -> Table:
    columns = [
        name for name in metric_names(ReportPart.COMPARISON) if any(name in row["test"] for row in content["rows"])
    ]
    rows = content["rows"]
    values = [[row["test"][name]["mean"] if name in row["test"] else None for name in columns] for row in rows]
    return metric_table(("arm", "checkpoint"), [(row["arm"], row["checkpoint"]) for row in rows], values, columns)


def _by_seed(content: Mapping[str, Any]) -> Table:
    metric = content["plan"]["metric"]
    rows = tuple(
        (
            row["arm"],
            row["checkpoint"],
            *(format_difference(metric, value) for value in row["against"][metric]["by_seed"]),
        )
        for row in content["rows"]
        if row["against"]
    )
    header = ("arm", "checkpoint", *(f"seed {seed}" for seed in content["seeds"]))
    return Table.of(header, rows, 2)


def _arms(content: Mapping[str, Any]) -> Table:
    rows, header = [], ("arm", "lambda", "pressure", "admission", "reward's weight")
    lost = {arm: lost_under(content, arm) for arm in content["arms"]}
    for arm, facts in content["arms"].items():
        admission = [format_metric("admission", value) for value in facts["admission"]]
        numbers = (_each(facts.get(name, ())) for name in ("lambda", "pressure"))
        row = (arm, *numbers, ", ".join(dict.fromkeys(admission)), _each(facts["weight"]))
        rows.append((*row, lost[arm] or MISSING) if any(lost.values()) else row)
    if any(lost.values()):
        return Table.of((*header, "policy lost"), rows, 1, 1)
    return Table.of(header, rows)


def lost_under(content: Mapping[str, Any], arm: str) -> str:
    """List the seeds and steps at which an arm's policy collapsed."""
    found = zip(content["seeds"], content["arms"][arm].get("lost", ()), strict=False)
    return ", ".join(f"seed {seed} (step {lost['step']})" for seed, lost in found if lost)


def _scaled(metric: str, value: float) -> str:
    return f"{100 * value:+.2f}" if is_rate(metric) else f"{value:+.4f}"


def format_difference(metric: str, value: float) -> str:
    """Format a signed difference; rates in percentage points."""
    text = _scaled(metric, value)
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("+-")


def format_ends(metric: str, ends: Sequence[float] | None) -> str:
    """Format both ends of the interval of a difference."""
    return MISSING if ends is None else f"{format_difference(metric, ends[0])} … {format_difference(metric, ends[1])}"


def format_size(metric: str, value: float) -> str:
    """Format an unsigned margin."""
    return counted(f"{100 * value:g}", "point") if is_rate(metric) else f"{value:g}"


def _half(metric: str, value: Mapping[str, Any]) -> str:
    return MISSING if value["interval"] is None else _scaled(metric, value["interval"][1] - value["mean"]).lstrip("+")


def _each(values: Sequence[float | None]) -> str:
    return ", ".join(dict.fromkeys(MISSING if value is None else format_number(value) for value in values)) or MISSING


def counted(number: int | str, noun: str) -> str:
    """Format a count with its noun: "1 seed", "2 seeds"."""
    return f"{number} {noun}" + ("" if str(number) == "1" else "s")
