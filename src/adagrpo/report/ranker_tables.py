"""Tables of the ranker: retrieval, and quality by stratum (`ranker/report/report.json`).

Intervals do not cover variation over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.metrics import ReportPart, metric_names
from adagrpo.report.figures import Figure
from adagrpo.report.interval_charts import ForestRow, IntervalMark, forest_chart
from adagrpo.report.summary import rerank_rows
from adagrpo.report.tables import START, Split, Table, checkpoints, format_interval, metric_label, metric_table


def ranking_table(metrics: Mapping[str, Any], split: Split) -> Table | None:
    """Tabulate the ranker, the re-ranked beam, the baselines and the starting policy; None if not measured."""
    ranker = metrics.get("ranker")
    if not isinstance(ranker, Mapping):
        return None
    rows: list[tuple[str, Mapping[str, Any]]] = [
        ("policy (sft), no ranker", point.metrics.get(split, {}))
        for point in checkpoints(metrics)
        if point.arm == START
    ]
    baselines = metrics.get("baselines") or {}
    # the fit validated on fewer users, and on the whole catalogue: no row of this table unless there is none else
    own = (baselines.get("ranker") or {}).get(split) or ranker.get(split) or {}
    rows.append(("ranker alone, full catalogue", own))
    for name, values in rerank_rows(metrics):
        path = name.split(" / ")
        if split in path or (split == "validation" and "test" not in path):
            order = " / ".join(part for part in path if part != split)
            rows.append((f"sft beam re-ranked: {order}", values))
    for name, splits in baselines.items():
        if name != "ranker":
            rows.append((name.replace("_", "-"), splits.get(split) or {}))
    rows = [(name, values) for name, values in rows if values]
    columns = [
        name for name in metric_names(ReportPart.RANKING) if any(values.get(name) is not None for _, values in rows)
    ]
    if not columns or all(name.startswith("policy") for name, _ in rows):
        return None
    cells = [[values.get(name) for name in columns] for _, values in rows]
    return metric_table(("ranking",), [(name,) for name, _ in rows], cells, columns)


def strata_table(report: Mapping[str, Any]) -> Table:
    """Tabulate quality by stratum, without empty columns."""
    columns = {"auc": "AUC", "ndcg@10": metric_label("ndcg@10"), "true_correlation": "correlation with true utility"}
    shown = [key for key in columns if any(row.get(key) for row in report["strata"])]
    calibrated = any("ece" in row for row in report["strata"])
    header = ("by", "stratum", "cases", *(columns[key] for key in shown), *(["ECE"] if calibrated else []))
    rows = [
        (
            row["by"],
            row["stratum"],
            f"{row['cases']:,}",
            *(format_interval(row.get(key), ".3f") for key in shown),
            *([f"{row['ece']:.3f}"] if calibrated else []),
        )
        for row in report["strata"]
    ]
    return Table.of(header, rows, 2)


def exposure_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the report on unordered impressions, by exposure and stratum."""
    calibrated = any("ece" in row for entry in report["exposures"] for row in entry["strata"])
    names = ("exposure", "stratum", "impressions", "clicked", "AUC", "NDCG@10")
    rows = [
        (
            *(entry["exposure"], _stratum(row), f"{row['impressions']:,}", f"{100 * row['click_rate']:.1f} %"),
            *(format_interval(row.get(key), ".3f") for key in ("auc", "ndcg@10")),
            *([f"{row['ece']:.3f}"] if calibrated else []),
        )
        for entry in report["exposures"]
        for row in entry["strata"]
    ]
    header = (*names, *(["ECE"] if calibrated else []))
    return Table.of(header, rows, 2)


def exposure_figures(report: Mapping[str, Any]) -> list[Figure]:
    """Draw the AUC of each stratum, one chart per exposure."""
    figures = []
    for entry in report["exposures"]:
        rows = [
            ForestRow(_stratum(row), {"ranker": IntervalMark.of(row["auc"])})
            for row in entry["strata"]
            if row.get("auc")
        ]
        title = f"AUC of the ranker, {entry['exposure']} exposure"
        svg = forest_chart(rows, title=title, x_label="AUC, with its 95 % interval over users", reference=0.5)
        figures.append(Figure(svg, "The dashed line is chance."))
    return figures


def _stratum(row: Mapping[str, Any]) -> str:
    return str(row["stratum"]) if row["by"] == "all" else f"{row['by']}: {row['stratum']}"


def calibration_text(report: Mapping[str, Any]) -> str:
    """Describe the calibration of the ranker, or why it has no probabilities."""
    calibration = report["calibration"]
    if isinstance(calibration, str):
        return f"No calibration error: {calibration}."
    bins = (f"{row['confidence']:.2f} against {row['hit_rate']:.2f} ({row['cases']:,} cases)" for row in calibration)
    return f"Mean confidence in the item ranked first against the rate at which it is right, by bin: {'; '.join(bins)}."
