"""The tables and facts of a run: its data, stages and fits, failures in training, paired differences, its ranker.

Intervals do not cover variation over seeds. Of paired differences nothing is bold: the best of several is no finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.metrics import ReportPart, is_rate, metric_names
from adagrpo.report.charts import ForestRow, IntervalMark, forest_chart
from adagrpo.report.figures import Figure, Log
from adagrpo.report.summary import rerank_rows
from adagrpo.report.tables import (
    MISSING,
    START,
    Alignment,
    Split,
    Table,
    checkpoints,
    format_interval,
    format_metric,
    format_number,
    is_finite,
    metric_label,
    metric_table,
)

COUNTS = {  # of summary.json, in the order of the work
    "rows_read": "rows read",
    "rows_rejected": "rows that cannot be read",
    "rows_filtered": "rows left out by the recipe",
    "exact_duplicates": "exact duplicates",
    "interactions_dropped": "interactions of rare users and items, dropped",
    "impressions_dropped": "impressions of items or users without an interaction, dropped",
    "impressions_later": "impressions after the end of training, not learned from",
    "without_impression_dropped": "interactions without an impression, dropped as there is no order",
    "repeats_dropped": "repeats of a user and an item, dropped as there is no order",
    "pairs_of_training_dropped": "impressions at random of what training shows the user, dropped",
    "without_history_dropped": "impressions of users without a click in training, dropped",
    "impressions": "impressions",
    "validation_impressions": "impressions for validation",
    "biased_impressions": "impressions for the report",
    "random_impressions": "impressions at random, for the report",
    "random_exposures_unknown": "impressions at random of unknown items or users, dropped",
    "random_exposures_logged": "impressions at random of what the log holds, dropped",
    "random_exposures": "impressions at random, to judge lists",
    "interactions": "interactions",
    "users": "users",
    "items": "items",
    "items_described": "items that the item table describes",
    "training_interactions": "interactions for training",
    "validation_cases": "validation cases",
    "validation_cases_of_new_items": "validation cases whose item nobody chose in training",
    "test_cases": "test cases",
    "later_interactions": "interactions that only the lists of `recommend` read",
}
FITTED = ("ndcg@10", "hr@10", "hallucination@10", "auc")  # of a validation, those that there are
LEVEL_COLUMNS = {
    "size": "codes",
    "codes_used": "used",
    "entropy_share": "entropy, share of the most",
    "prefixes": "prefixes",
}
FAILED = "not_finite_"
REFERENCES = {"sft": "the starting policy", "nll": "continued NLL"}
DRAWN = ("hr@10", "true_utility@10")


def dataset_table(summary: Mapping[str, Any]) -> Table:
    """Tabulate the counts of the prepared data."""
    return Table.of(
        ("prepared", ""), [(text, f"{summary[name]:,}") for name, text in COUNTS.items() if name in summary]
    )


def catalog_table(outcome: Mapping[str, Any]) -> Table:
    """Tabulate the Semantic IDs, see `adagrpo.pipeline.results.catalog_outcome`."""
    levels = outcome["levels"]
    rows = [
        ("items", f"{outcome['items']:,}"),
        ("levels", f"{len(levels)}"),
        ("codes of each level", " ".join(f"{level['size']:,}" for level in levels)),
        ("codes in use", " ".join(f"{level['codes_used']:,}" for level in levels)),
        ("items whose codes were another's too", f"{100 * outcome['collision_rate']:.1f} %"),
        ("most items of the same codes", f"{outcome['largest_collision']:,}"),
        ("share of code sequences that name an item", f"{outcome['density']:.2e}"),
    ]
    return Table.of(("Semantic IDs", ""), rows)


def fits_table(outcomes: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate fits (`adagrpo.pipeline.results.fit_outcome`), with validation metrics at the best step."""
    shown = [name for name in FITTED if any(name in outcome["validation"] for outcome in outcomes.values())]
    rows = []
    for name, outcome in outcomes.items():
        term, values = next(iter(outcome["loss"].items()), ("", None))
        loss = MISSING if values is None else f"{term} {values[0]:.3f} to {values[1]:.3f}"
        cells = [format_metric(metric, outcome["validation"].get(metric)) for metric in shown]
        rows.append((name, f"{outcome['steps']:,}", loss, f"{outcome['best_step']:,}", *cells))
    return Table.of(("fit", "steps", "loss", "best step", *map(metric_label, shown)), rows)


def levels_table(catalog: Any) -> Table | None:
    """Tabulate the codes of each level; accepts both names of the list."""
    levels = (catalog.get("per_level") or catalog.get("level")) if isinstance(catalog, Mapping) else None
    if not levels:
        return None
    known = [key for key in LEVEL_COLUMNS if any(level.get(key) is not None for level in levels)]
    rows = [(str(i), *(_fact(key, level.get(key)) for key in known)) for i, level in enumerate(levels, start=1)]
    return Table.of(("level", *(LEVEL_COLUMNS[key] for key in known)), rows, 0)


def facts(values: Any) -> list[tuple[str, str]]:
    """Return the names and texts of the scalar values of a mapping."""
    plain = values.items() if isinstance(values, Mapping) else ()
    return [
        (str(key).replace("_", " "), _fact(str(key), value))
        for key, value in plain
        if isinstance(value, str | int | float)
    ]


def _fact(key: str, value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f} %" if key.endswith(("_rate", "_share")) else format_number(value)


def stage_table(events: Sequence[Mapping[str, Any]]) -> Table | None:
    """Tabulate the duration of each stage's last run and its last event."""
    seconds: dict[str, float] = {}
    last: dict[str, str] = {}
    for event in events:
        stage = str(event.get("stage", MISSING))
        last[stage] = str(event.get("event", MISSING))
        if last[stage] == "end" and isinstance(event.get("seconds"), int | float):
            seconds[stage] = event["seconds"]
    rows = [(stage, _duration(seconds.get(stage)), what) for stage, what in last.items()]
    total = ("all", _duration(sum(seconds.values())), "")
    return Table.of(("stage", "duration", "last event"), (*rows, total), 1, 1) if rows else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def failures_table(logs: Sequence[Log]) -> Table | None:
    """Tabulate skipped steps, uninformative rewards, empty groups and collapses by arm, if any."""
    rows = []
    for log in logs:
        causes = Counter(key.removeprefix(FAILED) for row in log.steps for key in row if key.startswith(FAILED))
        same = [one.constant_rewards for one in log.groups if is_finite(one.constant_rewards)]
        share = sum(same) / len(same) if same else 0.0
        skipped = sum("skipped" in row for row in log.steps)
        empty = sum(int(one.empty_groups or 0) for one in log.groups)
        if skipped or share or empty or log.lost:
            what = ", ".join(f"{name}: {count}" for name, count in causes.most_common())
            lost = f"step {log.lost['step']}: {log.lost['why']}" if log.lost else MISSING
            counts = (f"{len(log.steps):,}", f"{skipped:,}", what, format_metric("admission", share), f"{empty:,}")
            rows.append((log.arm, *counts, lost))
    header = ("arm", "steps", "skipped", "not finite", "samples with equal rewards", "groups without an item")
    right: tuple[Alignment, ...] = ("right", "right", "left", "right", "right")
    return Table((*header, "policy lost"), tuple(rows), ("left", *right, "left")) if rows else None


def paired_table(content: Mapping[str, Any], reference: str) -> Table | None:
    """Tabulate mean differences from `sft` or `nll` with 95 % intervals (`paired.json`); None if not compared."""
    rows = [row for row in content["against"] if row["reference"] == reference]
    if not rows:
        return None
    names = list(rows[0]["metrics"])
    forms = {name: ("+.2f", 100.0) if is_rate(name) else ("+.4f", 1.0) for name in names}
    lines = [
        (row["arm"], row["checkpoint"], *(format_interval(row["metrics"][name], *forms[name]) for name in names))
        for row in rows
    ]
    header = ("arm", "checkpoint", *(metric_label(name) + (", points" if is_rate(name) else "") for name in names))
    return Table.of(header, lines, 2)


def paired_figures(content: Mapping[str, Any], reference: str) -> list[Figure]:
    """Draw the differences in HR@10 and, if known, true utility, from `sft` or `nll`."""
    rows = [row for row in content["against"] if row["reference"] == reference]
    figures = []
    for name in (name for name in DRAWN if rows and name in rows[0]["metrics"]):
        drawn = [
            ForestRow(f"{row['arm']}, {row['checkpoint']}", {row["arm"]: IntervalMark.of(row["metrics"][name])})
            for row in rows
        ]
        svg = forest_chart(
            drawn,
            title=f"{metric_label(name)} minus that of {REFERENCES[reference]}, test cases",
            x_label=f"difference{', points' if is_rate(name) else ''} (95 % over users)",
            percent_points=is_rate(name),
        )
        figures.append(Figure(svg))
    return figures


def own_interval(content: Mapping[str, Any], arm: str, checkpoint: str) -> Mapping[str, Mapping[str, float]]:
    """Return a checkpoint's metrics in `paired.json` with intervals."""
    for row in content["checkpoints"]:
        if (row["arm"], row["checkpoint"]) == (arm, checkpoint):
            return dict(row["metrics"])
    return {}


def ranking_table(metrics: Mapping[str, Any], split: Split) -> Table | None:
    """Tabulate ranker, re-ranked beam, baselines and starting policy; None if not measured."""
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
    known = {name for _, values in rows for name in values if values[name] is not None}
    columns = [name for name in metric_names(ReportPart.RANKING) if name in known]
    if not columns or all(name.startswith("policy") for name, _ in rows):
        return None
    cells = [[values.get(name) for name in columns] for _, values in rows]
    return metric_table(("ranking",), [(name,) for name, _ in rows], cells, columns)


def strata_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the ranker's quality by stratum (`ranker/report/report.json`), without empty columns."""
    columns = {"auc": "AUC", "ndcg@10": metric_label("ndcg@10"), "true_correlation": "correlation with true utility"}
    shown = [key for key in columns if any(row.get(key) for row in report["strata"])]
    calibrated = any("ece" in row for row in report["strata"])
    header = ("by", "stratum", "cases", *(columns[key] for key in shown), *(["ECE"] if calibrated else []))
    rows = [
        (
            *(row["by"], row["stratum"], f"{row['cases']:,}"),
            *(format_interval(row.get(key), ".3f") for key in shown),
            *([f"{row['ece']:.3f}"] if calibrated else []),
        )
        for row in report["strata"]
    ]
    return Table.of(header, rows, 2)


def exposure_table(report: Mapping[str, Any]) -> Table:
    """Tabulate the report on unordered impressions, by exposure and stratum."""
    calibrated = any("ece" in row for entry in report["exposures"] for row in entry["strata"])
    header = ("exposure", "stratum", "impressions", "clicked", "AUC", "NDCG@10", *(["ECE"] if calibrated else []))
    rows = [
        (
            *(entry["exposure"], _stratum(row), f"{row['impressions']:,}", f"{100 * row['click_rate']:.1f} %"),
            *(format_interval(row.get(key), ".3f") for key in ("auc", "ndcg@10")),
            *([f"{row['ece']:.3f}"] if calibrated else []),
        )
        for entry in report["exposures"]
        for row in entry["strata"]
    ]
    return Table.of(header, rows, 2)


def exposure_figures(report: Mapping[str, Any]) -> list[Figure]:
    """Draw the AUC of each stratum, one chart per exposure."""
    figures = []
    for entry in report["exposures"]:
        known = [row for row in entry["strata"] if row.get("auc")]
        rows = [ForestRow(_stratum(row), {"ranker": IntervalMark.of(row["auc"])}) for row in known]
        title = f"AUC of the ranker, {entry['exposure']} exposure"
        svg = forest_chart(rows, title=title, x_label="AUC, with its 95 % interval over users", reference=0.5)
        figures.append(Figure(svg, "The dashed line is chance."))
    return figures


def _stratum(row: Mapping[str, Any]) -> str:
    return str(row["stratum"]) if row["by"] == "all" else f"{row['by']}: {row['stratum']}"


def calibration_text(report: Mapping[str, Any]) -> str:
    """Describe the ranker's calibration, or why it has none."""
    calibration = report["calibration"]
    if isinstance(calibration, str):
        return f"No calibration error: {calibration}."
    bins = (f"{row['confidence']:.2f} against {row['hit_rate']:.2f} ({row['cases']:,} cases)" for row in calibration)
    return f"Mean confidence in the item ranked first against the rate at which it is right, by bin: {'; '.join(bins)}."
