"""Orders of what a feed and a random policy showed, of the rows of `research.exposed_feed.measure`.

Of several seeds the mean is shown, and the mean of their intervals over users, which is no narrower than that of all
seeds together would be; it says nothing of further seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adagrpo.report.tables import MISSING, Alignment, Table

__all__ = ["difference_table", "exposure_table", "order_table"]

Row = Mapping[str, Any]

COLUMNS = (("feed", "long_view"), ("feed", "clicked"), ("random", "clicked"))
HEADERS = ("feed, long view", "feed, click", "random, click")
TITLES = {
    "popularity": "long views of the item",
    "exposures": "exposures of the item",
    "chosen_rate": "smoothed long-view rate of the item",
    "reward": "ranker",
    "reward-weighed": "ranker, weighed by propensity",
    "sft": "starting policy",
    "nll": "continued NLL",
}


def order_table(rows: Sequence[Row], measure: str = "auc") -> Table:
    """One row an order: a measure by each judge and label, with 95 % intervals over users."""
    lines = []
    for order, of in _by_order([row for row in rows if row["kind"] != "pair"]).items():
        cells = (_cell([row["judges"][judge][label][measure] for row in of], "") for judge, label in COLUMNS)
        lines.append((_title(order), str(len(of)), *cells))
    right: list[Alignment] = ["right"] * (1 + len(COLUMNS))
    return Table(("order", "seeds", *HEADERS), tuple(lines), ("left", *right))


def difference_table(rows: Sequence[Row], reference: str, measure: str = "auc") -> Table:
    """One row an order that has it: points of a measure gained over a reference, by each judge, paired by user.

    Args:
        rows: of the study.
        reference: `sft` or `nll`; `arms`: one arm less another one.
        measure: of the judges.
    """
    lines = []
    for order, of in _by_order([row for row in rows if (row["kind"] == "pair") == (reference == "arms")]).items():
        if reference == "nll" and "against_nll" not in of[0]:
            continue
        if reference != "nll" and "difference" not in of[0]["judges"]["feed"]["long_view"]:
            continue
        found = [[_gain(row, reference, judge, label)[measure] for row in of] for judge, label in COLUMNS]
        lines.append((_title(order), *(_cell(values, "+") for values in found)))
    right: list[Alignment] = ["right"] * len(COLUMNS)
    return Table(("order", *HEADERS), tuple(lines), ("left", *right))


def exposure_table(rows: Sequence[Row], orders: Sequence[str] = ("exposures", "chosen_rate", "reward", "sft")) -> Table:
    """What chance showed, by how often the feed had shown the item: click rate, and AUC of what was clicked."""
    judge, label = COLUMNS[-1]
    of = _by_order(rows)
    found = {order: [row["judges"][judge][label]["by_exposure"] for row in of[order]] for order in orders}
    lines = []
    for band, entry in found[orders[0]][0].items():
        cells = (_cell([seed[band]["auc"] for seed in found[order]], "") for order in orders)
        lines.append((band, f"{entry['exposures']:,}", f"{100 * entry['rate']:.1f} %", *cells))
    header = ("times shown", "random exposures", "clicked", *(_title(order) for order in orders))
    right: list[Alignment] = ["right"] * (len(header) - 1)
    return Table(header, tuple(lines), ("left", *right))


def _gain(row: Row, reference: str, judge: str, label: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (
        row["against_nll"][judge][label] if reference == "nll" else row["judges"][judge][label]["difference"]
    )
    return found


def _by_order(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["order"], []).append(row)
    return found


def _title(order: str) -> str:
    if order.startswith("rerank-"):
        return f"starting policy + {order.removeprefix('rerank-')} · ranker"
    return TITLES.get(order, order)


def _cell(values: Sequence[Mapping[str, float] | None], sign: str) -> str:
    """The mean over seeds of a mean and its ends; differences in points."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    mean, low, high = (sum(value[end] for value in known) / len(known) for end in ("mean", "low", "high"))
    if sign:
        return f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
    return " ".join((f"{mean:.3f}", f"({low:.3f} to {high:.3f})")).replace("0.", ".")
