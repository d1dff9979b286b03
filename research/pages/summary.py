"""The table of a comparison in the pages of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.errors import UserError
from adagrpo.evaluation.comparison import reported
from adagrpo.metrics import ReportPart, cutoff, is_rate, metric_names
from adagrpo.report.comparison_page import format_difference, format_ends
from adagrpo.report.tables import MISSING, Alignment, Table, format_metric, metric_label

__all__ = ["headline_table", "summary_table", "validation_table"]

UTILITY = "true_utility@10"
SHORT = ("hr@50", "ndcg@10", "hallucination@10", "coverage@10")
SUMMARY = (*SHORT, "tail_share@10")


def summary_table(content: Mapping[str, Any], short: bool = False, checkpoint: str | None = None) -> Table:
    """One row an arm and checkpoint for documents: the metric, its difference from the baseline, the tail and breadth.

    Args:
        content: of `comparison.json`.
        short: without the intervals over seeds, the share of tail items and the verdict.
        checkpoint: `best` or `final`: that one of each arm that has both.
    """
    plan, rows = content["plan"], content["rows"]
    metric = plan["metric"]
    columns = _beside(metric, SHORT if short else SUMMARY, rows)
    both = any("both" in result for row in rows for result in row["against"].values())
    over = f"{100 * plan['level']:g} % over users{' and seeds' * both}" if short or both else "users; seeds"
    unit = ", points" if is_rate(metric) else ""
    single = {arm for arm in (row["arm"] for row in rows) if sum(row["arm"] == arm for row in rows) == 1}
    # what is true of a list is known of simulated users alone
    judged = [metric, *([UTILITY] if any(UTILITY in row["against"] for row in rows) else [])]
    cells = []
    for row in rows:
        if checkpoint is not None and row["arm"] not in single and row["checkpoint"] != checkpoint:
            continue
        test = row["test"]
        line = [row["arm"], MISSING if row["arm"] in single else row["checkpoint"]]
        for name in judged:
            result = row["against"].get(name)
            line.append(format_metric(name, row["test"][name]["mean"]))
            if result is None:
                line.append(MISSING)
            else:
                ends = [reported(result)] if short or "both" in result else [result["users"], result["seeds"]]
                line.append(
                    f"{format_difference(name, result['difference'])} ({'; '.join(format_ends(name, e) for e in ends)})"
                )
        line += [format_metric(name, test[name]["mean"]) if name in test else MISSING for name in columns]
        cells.append((*line, *([] if short else [row["verdict"]])))
    header = ["arm", "checkpoint", metric_label(metric), f"against {plan['baseline']}{unit} ({over})"]
    header += [metric_label("true_utility@10"), f"against {plan['baseline']}"] if len(judged) > 1 else []
    header += [*map(metric_label, columns), *([] if short else ["verdict"])]
    right: list[Alignment] = ["right"] * (2 * len(judged) + len(columns))
    left: list[Alignment] = [] if short else ["left"]
    better = frozenset((i, len(header) - 1) for i, line in enumerate(cells) if line[-1] == "significantly better")
    return Table(tuple(header), tuple(cells), ("left", "left", *right, *left), better)


def headline_table(contents: Sequence[Mapping[str, Any]], arms: Sequence[str], titles: Sequence[str]) -> Table:
    """One row an arm, one column a comparison: its last checkpoint less the baseline, with the interval over users.

    Args:
        contents: of `comparison.json`; of a simulated marketplace true utility stands beside the metric.
        arms: the rows, in order.
        titles: of the comparisons.

    Raises:
        UserError: no comparison has one of the arms.
    """
    of = list(zip(titles, contents, strict=True))
    columns = [(title, content, content["plan"]["metric"]) for title, content in of]
    columns += [(title, c, UTILITY) for title, c in of if any(UTILITY in row["against"] for row in c["rows"])]
    last = [{row["arm"]: row for row in content["rows"]} for _, content, _ in columns]  # final stands behind best
    _check_arms(arms, last)
    cells = []
    for arm in arms:
        results = [
            rows[arm]["against"].get(name) if arm in rows else None
            for rows, (_, _, name) in zip(last, columns, strict=True)
        ]
        line = [
            MISSING
            if result is None
            else f"{format_difference(name, result['difference'])} ({format_ends(name, reported(result))})"
            for result, (_, _, name) in zip(results, columns, strict=True)
        ]
        cells.append((arm, *line))
    header = [f"{title}, Δ {metric_label(name)}{', points' * is_rate(name)}" for title, _, name in columns]
    right: list[Alignment] = ["right"] * len(columns)
    return Table(("arm", *header), tuple(cells), ("left", *right))


def validation_table(contents: Sequence[Mapping[str, Any]], arms: Sequence[str], titles: Sequence[str]) -> Table:
    """One row an arm, one column a comparison: the mean of its last steps on validation less that of the baseline.

    Args:
        contents: of `comparison.json`.
        arms: the rows, in order.
        titles: of the comparisons.

    Raises:
        UserError: no comparison has one of the arms.
    """
    metrics = [content["plan"]["metric"] for content in contents]
    last = [{row["arm"]: row["validation"] for row in content["rows"]} for content in contents]
    _check_arms(arms, last)
    cells = []
    for arm in arms:
        line = [
            format_difference(metric, rows[arm][metric] - rows[content["plan"]["baseline"]][metric])
            if arm in rows
            else MISSING
            for metric, rows, content in zip(metrics, last, contents, strict=True)
        ]
        cells.append((arm, *line))
    of = zip(titles, metrics, strict=True)
    header = [f"{title}, Δ {metric_label(name)} on validation{', points' * is_rate(name)}" for title, name in of]
    right: list[Alignment] = ["right"] * len(contents)
    return Table(("arm", *header), tuple(cells), ("left", *right))


def _check_arms(arms: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    if unknown := [arm for arm in arms if not any(arm in of for of in rows)]:
        raise UserError(f"no comparison has an arm {unknown[0]}")


def _beside(metric: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics beside the compared one: accuracy at its depth, accuracy at others, then what the lists hold."""
    known = [name for name in names if name != metric and any(name in row["test"] for row in rows)]
    accuracy = metric_names(ReportPart.RANKING)
    return sorted(known, key=lambda name: (name not in accuracy, cutoff(name) != cutoff(metric)))
