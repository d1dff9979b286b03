"""Paired comparison of checkpoints with the starting policy and continued NLL, from `report/paired/paired.json`.

Nothing is bold: the best of several differences is no finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.metrics import is_rate
from adagrpo.report.figures import Figure
from adagrpo.report.interval_charts import ForestRow, IntervalMark, forest_chart
from adagrpo.report.tables import Table, format_interval, metric_label

REFERENCES = {"sft": "the starting policy", "nll": "continued NLL"}
DRAWN = ("hr@10", "true_utility@10")


def paired_table(content: Mapping[str, Any], reference: str) -> Table | None:
    """Tabulate mean differences from `sft` or `nll` with 95 % intervals; None if not compared."""
    rows = _rows(content, reference)
    if not rows:
        return None
    names = list(rows[0]["metrics"])
    lines = [
        (row["arm"], row["checkpoint"], *(_difference(name, row["metrics"][name]) for name in names)) for row in rows
    ]
    header = ("arm", "checkpoint", *(metric_label(name) + (", points" if is_rate(name) else "") for name in names))
    return Table.of(header, lines, 2)


def paired_figures(content: Mapping[str, Any], reference: str) -> list[Figure]:
    """Draw the differences in HR@10 and, if known, true utility, from `sft` or `nll`."""
    rows = _rows(content, reference)
    names = [name for name in DRAWN if rows and name in rows[0]["metrics"]]
    figures = []
    for name in names:
        drawn = [
            ForestRow(f"{row['arm']}, {row['checkpoint']}", {row["arm"]: IntervalMark.of(row["metrics"][name])})
            for row in rows
        ]
        label = metric_label(name)
        svg = forest_chart(
            drawn,
            title=f"{label} minus that of {REFERENCES[reference]}, test cases",
            x_label=f"difference{', points' if is_rate(name) else ''} (95 % over users)",
            percent_points=is_rate(name),
        )
        figures.append(Figure(svg))
    return figures


def own_interval(content: Mapping[str, Any], arm: str, checkpoint: str) -> Mapping[str, Mapping[str, float]]:
    """Return the metrics of a checkpoint with their intervals, by name."""
    for row in content["checkpoints"]:
        if (row["arm"], row["checkpoint"]) == (arm, checkpoint):
            return dict(row["metrics"])
    return {}


def _rows(content: Mapping[str, Any], reference: str) -> list[Mapping[str, Any]]:
    return [row for row in content["against"] if row["reference"] == reference]


def _difference(name: str, interval: Mapping[str, float]) -> str:
    return format_interval(interval, "+.2f", 100) if is_rate(name) else format_interval(interval, "+.4f")
