"""The table of what the tuning of the fair trial chose, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.report.tables import Table, format_metric, format_number, metric_label

__all__ = ["tuned_table"]

METRIC = "hr@10"


def tuned_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a family: the setting of its last rung with the highest metric, and what the others of that rung had.

    Args:
        rows: of `research.fair_trial.tune`, of one set.
    """
    cells = []
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = [row for row in rows if row["family"] == family]
        last = [row for row in mine if row["rung"] == max(row["rung"] for row in mine)]
        last.sort(key=lambda row: (-row["final"][METRIC], row["pressure"]))
        best, worst = last[0], last[-1]
        cells.append(
            (
                family,
                format_number(best["pressure"]),
                format_number(best["pressure_found"]["lambda_"]),
                best["rollouts"],
                best["positions"],
                str(best["steps"]),
                format_metric(METRIC, best["final"][METRIC]),
                format_metric(METRIC, worst["final"][METRIC]),
            )
        )
    label = metric_label(METRIC)
    header = ("family", "pressure", "lambda", "rollouts", "positions", "steps", label, f"{label}, worst of the rung")
    return Table(header, tuple(cells), ("left", "right", "right", "left", "left", "right", "right", "right"))
