"""Metrics of ranked lists: formulas, and the table of metrics."""

from adagrpo.metrics.formulas import (
    coverage,
    hallucination,
    hit_rate,
    ndcg,
    recall,
    tail_items,
    tail_share,
    target_rank_in,
)
from adagrpo.metrics.table import (
    METRICS,
    Metric,
    RankedLists,
    ReportPart,
    comparable,
    cutoff,
    is_rate,
    lookup,
    measure,
    measure_users,
    measured,
    metric_names,
)

__all__ = [
    "METRICS",
    "Metric",
    "RankedLists",
    "ReportPart",
    "comparable",
    "coverage",
    "cutoff",
    "hallucination",
    "hit_rate",
    "is_rate",
    "lookup",
    "measure",
    "measure_users",
    "measured",
    "metric_names",
    "ndcg",
    "recall",
    "tail_items",
    "tail_share",
    "target_rank_in",
]
