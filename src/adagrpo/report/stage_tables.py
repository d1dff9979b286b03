"""Small tables of stage results, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.report.tables import MISSING, Table, format_metric, metric_label

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
METRICS = ("ndcg@10", "hr@10", "hallucination@10", "auc")  # of a validation, those that there are


def dataset_table(summary: Mapping[str, Any]) -> Table:
    """Tabulate the counts of the prepared data.

    Example:
        >>> from adagrpo.report import to_text
        >>> print(to_text(dataset_table({"users": 8317, "items": 4344})))
        prepared
        --------  -----
        users     8,317
        items     4,344
    """
    rows = tuple((text, f"{summary[name]:,}") for name, text in COUNTS.items() if name in summary)
    return Table.of(("prepared", ""), rows)


def catalog_table(outcome: Mapping[str, Any]) -> Table:
    """Tabulate the Semantic IDs, see `adagrpo.pipeline.outcomes.catalog_outcome`."""
    levels = outcome["levels"]
    rows = (
        ("items", f"{outcome['items']:,}"),
        ("levels", f"{len(levels)}"),
        ("codes of each level", " ".join(f"{level['size']:,}" for level in levels)),
        ("codes in use", " ".join(f"{level['codes_used']:,}" for level in levels)),
        ("items whose codes were another's too", f"{100 * outcome['collision_rate']:.1f} %"),
        ("most items of the same codes", f"{outcome['largest_collision']:,}"),
        ("share of code sequences that name an item", f"{outcome['density']:.2e}"),
    )
    return Table.of(("Semantic IDs", ""), rows)


def fits_table(outcomes: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate fits (`adagrpo.pipeline.outcomes.fit_outcome`), with validation metrics at the best step."""
    shown = [name for name in METRICS if any(name in outcome["validation"] for outcome in outcomes.values())]
    rows = []
    for name, outcome in outcomes.items():
        term, values = next(iter(outcome["loss"].items()), ("", None))
        loss = MISSING if values is None else f"{term} {values[0]:.3f} to {values[1]:.3f}"
        metrics = [outcome["validation"].get(metric) for metric in shown]
        cells = [format_metric(metric, value) for metric, value in zip(shown, metrics, strict=True)]
        rows.append((name, f"{outcome['steps']:,}", loss, f"{outcome['best_step']:,}", *cells))
    header = ("fit", "steps", "loss", "best step", *map(metric_label, shown))
    return Table.of(header, rows)
