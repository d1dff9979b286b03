"""The tables of a comparison, from `comparison.json`, with rates in per cent and differences in percentage points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.evaluation.comparison import reported
from adagrpo.metrics import ReportPart, is_rate, metric_names
from adagrpo.report.tables import MISSING, Table, format_metric, format_number, format_p, metric_label, metric_table

KINDS = {"both": "users and seeds", "users": "users", "seeds": "seeds"}


def comparison_tables(content: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Return all tables that have rows, with their titles."""
    rows, metric = content["rows"], content["plan"]["metric"]
    points = [(row["arm"], row["checkpoint"]) for row in rows]
    columns = [name for name in metric_names(ReportPart.COMPARISON) if any(name in row["test"] for row in rows)]
    values = [[row["test"][name]["mean"] if name in row["test"] else None for name in columns] for row in rows]
    by_seed = [
        (*point, *(format_difference(metric, one) for one in row["against"][metric]["by_seed"]))
        for point, row in zip(points, rows, strict=True)
        if row["against"]
    ]
    seeds = ("arm", "checkpoint", *(f"seed {seed}" for seed in content["seeds"]))
    named = [
        ("Against the baseline", comparison_table(content)),
        ("Against the baseline in true utility@10", _true_utility(content)),
        ("Arms against each other", pairs_table(content)),
        ("Margins", _margins(content)),
        ("Head, tail and breadth (means over seeds)", metric_table(("arm", "checkpoint"), points, values, columns)),
        (f"Difference in {metric_label(metric)} by seed", Table.of(seeds, by_seed, 2)),
        ("What each arm was", _arms(content)),
    ]
    return [(title, table) for title, table in named if table.rows]


def comparison_table(content: Mapping[str, Any]) -> Table:
    """Tabulate arms and checkpoints, with intervals over seeds and differences from the baseline."""
    metric, kinds = content["plan"]["metric"], interval_kinds(content)
    first, *others = _over(content)
    against = f"vs {content['plan']['baseline']}{_points(metric)}"
    header = ["arm", "checkpoint", "verdict", metric_label(metric), "± seeds", against, first, "p, Holm", *others]
    rows = []
    for row in content["rows"]:
        test = row["test"][metric]
        half = MISSING if test["interval"] is None else _scaled(metric, test["interval"][1] - test["mean"]).lstrip("+")
        difference, end, *ends = _difference(metric, row["against"].get(metric), kinds)
        p = MISSING if row["p_holm"] is None else format_p(row["p_holm"])
        names = (row["arm"], row["checkpoint"], row["verdict"])
        rows.append((*names, format_metric(metric, test["mean"]), half, difference, end, p, *ends))
    return Table.of(header, rows, 3)


def pairs_table(content: Mapping[str, Any]) -> Table:
    """Tabulate the planned pairs: the first arm less the second, with intervals."""
    metric, kinds = content["plan"]["metric"], interval_kinds(content)
    first, *others = _over(content)
    header = ["arms", "checkpoint", f"{metric_label(metric)}{_points(metric)}", first, "p, Holm", *others]
    rows = []
    for row in content.get("pairs", ()):
        difference, end, *ends = _difference(metric, row["against"][metric], kinds)
        names = (f"{row['arm']} minus {row['other']}", row["checkpoint"])
        rows.append((*names, difference, end, format_p(row["p_holm"]), *ends))
    return Table.of(header, rows, 2)


def _true_utility(content: Mapping[str, Any]) -> Table:
    name, kinds = "true_utility@10", interval_kinds(content)
    rows = [
        (
            *(row["arm"], row["checkpoint"], format_metric(name, row["test"][name]["mean"])),
            *_difference(name, row["against"][name], kinds),
        )
        for row in content["rows"]
        if name in row["against"]
    ]
    header = ["arm", "checkpoint", metric_label(name), f"vs {content['plan']['baseline']}", *_over(content)]
    return Table.of(header, rows, 2)


def interval_kinds(content: Mapping[str, Any]) -> list[str]:
    """Return the kinds of interval of the differences, the preferred one first."""
    both = any("both" in against for row in content["rows"] for against in row["against"].values())
    return ["both", "users", "seeds"] if both else ["users", "seeds"]


def _over(content: Mapping[str, Any]) -> list[str]:
    return [f"{100 * content['plan']['level']:g} % over {KINDS[kind]}" for kind in interval_kinds(content)]


def _points(metric: str) -> str:
    return " (points)" if is_rate(metric) else ""


def _difference(metric: str, against: Mapping[str, Any] | None, kinds: Sequence[str]) -> list[str]:
    if against is None:
        return [MISSING] * (1 + len(kinds))
    return [
        format_difference(metric, against["difference"]),
        *(format_ends(metric, against.get(kind)) for kind in kinds),
    ]


def _margins(content: Mapping[str, Any]) -> Table:
    margins, over = content["plan"]["margins"], KINDS[interval_kinds(content)[0]]
    header = ["arm", "checkpoint"]
    for name, size in margins.items():
        against = f"{metric_label(name)} vs {content['plan']['baseline']}"
        header += [against, f"over {over}", f"within {format_size(name, size)}"]
    rows = []
    for row in content["rows"]:
        cells = [row["arm"], row["checkpoint"]]
        for name in margins if row["margins"] else ():
            against = row["against"][name]
            cells += [format_difference(name, against["difference"]), format_ends(name, reported(against))]
            cells += ["yes" if row["margins"][name]["kept"] else "not shown"]
        rows += [tuple(cells)] if row["margins"] else []
    return Table.of(header, rows, 2)


def _arms(content: Mapping[str, Any]) -> Table:
    def each(values: Sequence[float | None]) -> str:
        texts = [MISSING if value is None else format_number(value) for value in values]
        return ", ".join(dict.fromkeys(texts)) or MISSING

    rows, lost = [], {arm: lost_under(content, arm) for arm in content["arms"]}
    for arm, facts in content["arms"].items():
        admission = dict.fromkeys(format_metric("admission", value) for value in facts["admission"])
        numbers = (each(facts.get("lambda", ())), each(facts.get("pressure", ())), ", ".join(admission))
        rows.append((arm, *numbers, each(facts["weight"]), *([lost[arm] or MISSING] if any(lost.values()) else [])))
    header = ("arm", "lambda", "pressure", "admission", "reward's weight")
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


def counted(number: int | str, noun: str) -> str:
    """Format a count with its noun: "1 seed", "2 seeds"."""
    return f"{number} {noun}" + ("" if str(number) == "1" else "s")
