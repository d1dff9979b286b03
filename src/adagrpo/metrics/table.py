"""The table of metrics: name, formula, print format, direction, and where each is shown.

A value is called `name@k`, or `name` without a cut-off; a suffix, as in `hr@10_unmasked`, names the kind of lists. A
new metric is one entry in `METRICS`, whose order is that of printed tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adagrpo.metrics.formulas import coverage, hallucination, hit_rate, ndcg, recall, tail_share
from adagrpo.types import Floats

Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class RankedLists:
    """Lists of `N` users, of length `W`; None where unknown."""

    ranks: NDArray[np.int64]  # (N,) rank of the logged item from 1, 0 where absent; of a basket's items (N, R)
    width: int  # W
    items: Ints | None = None  # (N, W) best first, -1 for no item
    valid: NDArray[np.bool_] | None = None  # (N, W) of the free beam: True where the sequence names an item
    tail: NDArray[np.bool_] | None = None  # (V,) True for the items of the tail
    rewards: NDArray[np.floating[Any]] | None = None  # (N, W) of `items`, NaN at -1
    utility: Callable[[Ints], Floats] | None = None  # (N, K) items, one row per user, to their true utilities
    invalid_samples: float | None = None  # share of plain samples that name no item
    sizes: Ints | None = None  # (N,) items of each basket, where ranks are of baskets


class ReportPart(Flag):
    """Tables and charts that select metrics."""

    NOWHERE = 0
    RESULTS = auto()  # a run's main table: each arm and checkpoint
    BREADTH = auto()  # a run's second table
    RANKING = auto()  # accuracy of policy, ranker and baselines, and in a diagnosis
    CURVES = auto()  # validation over the steps
    COMPARISON = auto()  # further metrics of a comparison


Form = Literal["rate", "share", "decimals", "number"]  # 12.18 %, 12.2 %, 0.1218, four significant figures
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """An entry of the table; without a formula, it is measured elsewhere."""

    name: str
    label: str
    at: Mapping[int | None, ReportPart]  # cut-offs, each with where it is shown; None: no cut-off
    form: Form = "number"
    better: Better | None = None  # the better direction; None: neither
    # of lists and cut-off (or `W`): (N,) values, or one that is no mean over users; None where an input is unknown
    per_user: Callable[[RankedLists, int], Floats | None] | None = None
    of_all: Callable[[RankedLists, int], float | None] | None = None
    everywhere: bool = True  # its inputs are always known, so a comparison may be planned on it
    baskets: bool = False  # only cases of whole baskets have it


def metric_names(where: ReportPart) -> list[str]:
    """Return the names that a table or chart shows.

    >>> metric_names(ReportPart.RANKING)
    ['hr@1', 'hr@5', 'hr@10', 'hr@50', 'ndcg@5', 'ndcg@10', 'recall@10']
    """
    return [_called(entry, k) for entry in METRICS.values() for k, parts in entry.at.items() if where in parts]


def measured(baskets: bool = False) -> list[str]:
    """Return the names that evaluation can compute, with `baskets` also those of baskets."""
    entries = [entry for entry in METRICS.values() if entry.per_user or entry.of_all]
    return [_called(entry, k) for entry in entries if baskets or not entry.baskets for k in entry.at]


def comparable() -> list[str]:
    """Return the names that a comparison may be planned on: per user, with a better direction, known of any lists.

    >>> comparable()
    ['hr@1', 'hr@5', 'hr@10', 'hr@50', 'ndcg@5', 'ndcg@10', 'ndcg@50', 'hallucination@10']
    """
    entries = [entry for entry in METRICS.values() if entry.per_user and entry.better and entry.everywhere]
    return [_called(entry, k) for entry in entries for k in entry.at]


def lookup(name: str) -> Metric:
    """Return a name's entry, or an empty one.

    >>> lookup("hallucination@10").better, lookup("ndcg@10_unmasked").label, lookup("dwell_time").label
    ('lower', 'NDCG', 'dwell time')
    """
    base = name.partition("@")[0]
    return METRICS.get(base) or Metric(base, base.replace("_", " "), {})


def cutoff(name: str) -> int | None:
    """Return the cut-off in a name; None where it has none.

    >>> cutoff("hr@50"), cutoff("ndcg@10_unmasked"), cutoff("invalid_samples")
    (50, 10, None)
    """
    digits = name.partition("@")[2].partition("_")[0]
    return int(digits) if digits else None


def is_rate(name: str) -> bool:
    """Return whether a metric is in per cent."""
    return lookup(name).form == "rate"


def measure(lists: RankedLists) -> dict[str, float]:
    """Return metrics by name, where inputs are known and lists long enough."""
    results = {}
    for entry, k in _within(lists.width):
        if entry.of_all is not None:
            value = entry.of_all(lists, k or lists.width)
        else:
            values = entry.per_user(lists, k or lists.width) if entry.per_user else None
            value = None if values is None else float(values.mean())
        if value is not None:
            results[_called(entry, k)] = value
    return results


def measure_users(lists: RankedLists) -> dict[str, Floats]:
    """Return per-user metrics, (N,) by name, as `measure`."""
    results = {}
    for entry, k in _within(lists.width):
        values = entry.per_user(lists, k or lists.width) if entry.per_user else None
        if values is not None:
            results[_called(entry, k)] = values
    return results


def _within(width: int) -> Iterator[tuple[Metric, int | None]]:
    for entry in METRICS.values():
        yield from ((entry, k) for k in entry.at if k is None or k <= width)


def _called(entry: Metric, k: int | None) -> str:
    return entry.name if k is None else f"{entry.name}@{k}"


def _true_utility(lists: RankedLists, k: int) -> Floats | None:  # (N,), 0 for an empty list
    values = _utilities(lists, k)
    if values is None:
        return None
    count = np.maximum((~np.isnan(values)).sum(axis=1), 1)
    return np.asarray(np.nansum(values, axis=1) / count)


def _mean_true_utility(lists: RankedLists, k: int) -> float | None:
    values = _utilities(lists, k)
    return None if values is None else float(values[~np.isnan(values)].mean())


def _utilities(lists: RankedLists, k: int) -> Floats | None:  # (N, k), NaN where there is no item
    if lists.items is None or lists.utility is None:
        return None
    top = lists.items[:, :k]
    return np.where(top < 0, np.nan, lists.utility(np.maximum(top, 0)))


_DEPTHS = ReportPart.BREADTH | ReportPart.RANKING | ReportPart.COMPARISON
_TABLE = (
    Metric(
        "hr",
        "HR",
        {1: _DEPTHS, 5: _DEPTHS, 10: ReportPart.RESULTS | ReportPart.RANKING | ReportPart.CURVES, 50: _DEPTHS},
        form="rate",
        better="higher",
        per_user=lambda lists, k: hit_rate(lists.ranks, k),
    ),
    Metric(
        "ndcg",
        "NDCG",
        {
            5: ReportPart.BREADTH | ReportPart.RANKING,
            10: ReportPart.RESULTS | ReportPart.RANKING | ReportPart.CURVES | ReportPart.COMPARISON,
            50: ReportPart.NOWHERE,
        },
        form="decimals",
        better="higher",
        per_user=lambda lists, k: ndcg(lists.ranks, k, lists.sizes),
    ),
    Metric(
        "recall",
        "recall",
        {10: ReportPart.RESULTS | ReportPart.RANKING | ReportPart.COMPARISON},
        form="rate",
        better="higher",
        per_user=lambda lists, k: None if lists.sizes is None else recall(lists.ranks, k, lists.sizes),
        everywhere=False,
        baskets=True,
    ),
    Metric(
        "hallucination",
        "hallucination",
        {10: ReportPart.RESULTS | ReportPart.CURVES | ReportPart.COMPARISON},
        form="rate",
        better="lower",
        per_user=lambda lists, k: None if lists.valid is None else hallucination(lists.valid, k),
    ),
    Metric(
        "coverage",
        "coverage",
        {10: ReportPart.BREADTH | ReportPart.COMPARISON},
        form="rate",
        better="higher",
        of_all=lambda lists, k: (
            None if lists.items is None or lists.tail is None else coverage(lists.items, k, len(lists.tail))
        ),
    ),
    Metric(
        "tail_share",
        "tail share",
        {10: ReportPart.BREADTH | ReportPart.COMPARISON},
        form="rate",
        per_user=lambda lists, k: (
            None if lists.items is None or lists.tail is None else tail_share(lists.items, k, lists.tail)
        ),
    ),
    Metric(
        "invalid_samples",
        "invalid samples",
        {None: ReportPart.BREADTH},
        form="rate",
        better="lower",
        of_all=lambda lists, _: lists.invalid_samples,
    ),
    Metric(
        "mean_reward",
        "mean reward",
        {10: ReportPart.RESULTS | ReportPart.CURVES | ReportPart.COMPARISON},
        better="higher",
        of_all=lambda lists, k: (
            None if lists.rewards is None else float(np.nanmean(lists.rewards[:, :k].astype(np.float64)))
        ),
        everywhere=False,
    ),
    # by another ranker; measured by earlier versions, in tables of research/
    Metric("second_reward", "second reward", {10: ReportPart.COMPARISON}, better="higher"),
    Metric(
        "true_utility",
        "true utility",
        {10: ReportPart.RESULTS | ReportPart.COMPARISON},
        better="higher",
        per_user=_true_utility,
        of_all=_mean_true_utility,
        everywhere=False,
    ),
    # of the groups of a training run, not of lists
    Metric("admission", "admission", {None: ReportPart.RESULTS}, form="share"),
)
METRICS: dict[str, Metric] = {entry.name: entry for entry in _TABLE}
