"""Tables of the judges: every order of what was shown, one table a judge and label.

Read from `judges` of metrics.json. An interval is over users; it says nothing of another seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adagrpo.report.tables import MISSING, Alignment, Table

__all__ = ["judge_tables"]

MEASURES = {"auc": "AUC within users", "ndcg@10": "NDCG@10", "top@1": "first chosen", "top@5": "of first five chosen"}
NAMES = {
    "popularity": "interactions of the item",
    "exposures": "exposures of the item",
    "chosen_rate": "smoothed share of its exposures that were chosen",
    "reward": "the reward",
    "sft": "the starting policy",
    "rerank": "the starting policy, re-ranked",
}


def judge_tables(metrics: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """One table a judge and label, with what it is called.

    Args:
        metrics: content of `metrics.json`.

    Example:
        >>> orders = {"sft": {"rate": 0.25, "auc": {"mean": 0.5, "low": 0.4, "high": 0.6, "users": 9}}}
        >>> (name, table), = judge_tables({"judges": {"feed": {"labels": {"click": orders}}}})
        >>> name, table.rows[0][:2]
        ('feed: click, 25.0 % of exposures', ('the starting policy', '.500 (.400 to .600)'))
    """
    tables = []
    for judge, content in (metrics.get("judges") or {}).items():
        for label, orders in content["labels"].items():
            rate = next(iter(orders.values()))["rate"]
            rows = tuple((NAMES.get(order, order), *_cells(entry)) for order, entry in orders.items())
            header = ("order", *MEASURES.values(), "AUC less the starting policy's")
            right: list[Alignment] = ["right"] * (len(header) - 1)
            table = Table(header, rows, ("left", *right))
            tables.append((f"{judge}: {label}, {100 * rate:.1f} % of exposures", table))
    return tables


def _cells(entry: Mapping[str, Any]) -> list[str]:
    own = [_interval(entry.get(name), "") for name in MEASURES]
    return [*own, _interval((entry.get("difference") or {}).get("auc"), "+")]


def _interval(value: Mapping[str, float] | None, sign: str) -> str:
    if value is None:
        return MISSING
    mean, low, high = (f"{value[field]:{sign}.3f}".replace("0.", ".", 1) for field in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
