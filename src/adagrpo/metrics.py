r"""Metrics of ranked lists: their formulas, and the table of names, print formats, directions and where each is shown.

For user `u` with list `i_u1 .. i_uW` and logged item at rank `r_u` (from 1; 0 if absent),

    HR@k            = 1[1 <= r_u <= k]
    NDCG@k          = 1[1 <= r_u <= k] / log2(1 + r_u)         one relevant item, so the ideal gain is 1
    hallucination@k = (1/k) Σ_{j<=k} 1[sequence j names no item]
    tail share@k    = share of the items named in the first k that are in the tail
    coverage@k      = |items in anyone's first k| / V

For a basket of `n_u` items at ranks `r_u1 .. r_un`, `h_u` of which are at most `k`,

    HR@k            = 1[h_u >= 1]
    NDCG@k          = Σ_{r_uj <= k} 1 / log2(1 + r_uj) / Σ_{j <= min(k, n_u)} 1 / log2(1 + j)
    recall@k        = h_u / min(k, n_u)

Sources: Järvelin & Kekäläinen 2002 for NDCG, Abdollahpouri et al. 2019 for the share of long-tail items. All but
coverage are per user. Departure: invalid sequences keep their rank, as when served. Lists are best first, -1 for no
item; invalid inputs raise a ValueError.

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

from adagrpo.types import Floats

Ints = NDArray[np.integer[Any]]


def target_rank_in(ranked: Ints, targets: Ints) -> NDArray[np.int64]:  # ranked (N, W), targets (N,) or (N, R)
    """Return the logged item's rank in each list, (N,) from 1, 0 if absent; of baskets (N, R), padded with -1."""
    _check_ranked("ranked", ranked, k=1)
    if targets.ndim == 2 and len(targets) == len(ranked):
        return np.stack([target_rank_in(ranked, np.ascontiguousarray(column)) for column in targets.T], axis=1)
    if targets.shape != ranked.shape[:1]:
        raise ValueError(f"targets: shape {targets.shape} does not fit (N={ranked.shape[0]})")
    is_target = (ranked == targets[:, None]) & (ranked >= 0)
    return np.where(is_target.any(axis=1), is_target.argmax(axis=1) + 1, 0).astype(np.int64)


def hit_rate(ranks: Ints, k: int) -> NDArray[np.float64]:  # ranks (N,) or (N, R)
    """Return `1[1 <= rank <= k]`, (N,); of a basket, whether any item is in the first `k`."""
    hits = _hits(ranks, k)
    return np.asarray(hits if ranks.ndim == 1 else hits.any(axis=1), dtype=np.float64)


def ndcg(ranks: Ints, k: int, sizes: Ints | None = None) -> NDArray[np.float64]:  # ranks (N,) or (N, R), sizes (N,)
    """Return NDCG@k per user, (N,); of baskets by their sizes."""
    hits = _hits(ranks, k)
    gains = np.where(hits, 1.0 / np.log2(1.0 + np.maximum(ranks, 1)), 0.0)
    if ranks.ndim == 1:
        return gains
    ideal = np.cumsum(1.0 / np.log2(2.0 + np.arange(k)))
    return np.asarray(gains.sum(axis=1) / ideal[np.minimum(_of_baskets(ranks, sizes), k) - 1])


def recall(ranks: Ints, k: int, sizes: Ints) -> NDArray[np.float64]:  # ranks (N, R), sizes (N,)
    """Return each basket's items among the first `k`, over the smaller of `k` and its size, (N,)."""
    return np.asarray(_hits(ranks, k).sum(axis=1) / np.minimum(_of_baskets(ranks, sizes), k))


# valid (N, W) True where the sequence names an item
def hallucination(valid: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return the share of the first `k` sequences that name no item, (N,) in [0, 1]."""
    _check_ranked("valid", valid, k)
    if valid.dtype != np.bool_:
        raise ValueError(f"valid: a mask must be bool, found {valid.dtype}")
    shares: NDArray[np.float64] = np.mean(~valid[:, :k], axis=1, dtype=np.float64)
    return shares


def coverage(ranked: Ints, k: int, num_items: int) -> float:  # ranked (N, W)
    """Return the share of the catalogue that is in any user's first `k`."""
    _check_ranked("ranked", ranked, k)
    named = _named(ranked, k, num_items)
    return float(np.unique(ranked[:, :k][named]).size / num_items)


def tail_share(ranked: Ints, k: int, tail: NDArray[np.bool_]) -> NDArray[np.float64]:  # ranked (N, W), tail (V,)
    """Return the tail's share of the items in the first `k`, (N,) in [0, 1]; 0 for a list without items."""
    _check_ranked("ranked", ranked, k)
    if tail.ndim != 1 or tail.dtype != np.bool_:
        raise ValueError(f"tail: expected bool of shape (V,), found {tail.dtype} of shape {tail.shape}")
    named = _named(ranked, k, len(tail))
    items = ranked[:, :k]
    in_tail = np.zeros_like(named)
    in_tail[named] = tail[items[named]]
    shares: NDArray[np.float64] = in_tail.sum(axis=1) / np.maximum(named.sum(axis=1), 1)
    return shares


def tail_items(popularity: NDArray[np.number[Any]], share: float = 0.2) -> NDArray[np.bool_]:  # popularity (V,)
    """Return a (V,) mask of the least popular items with at most `share` of the interactions.

    Ties go by index; items without interactions are always in it.
    """
    if popularity.ndim != 1 or not np.all(popularity >= 0):
        received = f"shape {popularity.shape}" if popularity.ndim != 1 else f"{popularity.min()}"
        raise ValueError(f"popularity: expected counts of at least 0 of shape (V,), found {received}")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: expected a number from 0 to 1, found {share}")
    order = np.argsort(popularity, kind="stable")
    cumulative = np.cumsum(popularity[order], dtype=np.float64)
    tail = np.zeros(len(popularity), dtype=np.bool_)
    # The margin is for products such as 0.29 * 100, which round to just below 29.
    tail[order] = cumulative <= share * popularity.sum(dtype=np.float64) * (1.0 + 1e-12)
    return tail


def _of_baskets(ranks: Ints, sizes: Ints | None) -> Ints:
    if ranks.ndim != 2 or sizes is None or sizes.shape != ranks.shape[:1] or np.any(sizes < 1):
        found = None if sizes is None else sizes.shape
        raise ValueError(f"sizes: expected counts from 1 for ranks of shape (N, R), found {found} for {ranks.shape}")
    return sizes


def _hits(ranks: Ints, k: int) -> NDArray[np.bool_]:
    if ranks.ndim not in (1, 2):
        raise ValueError(f"ranks: expected shape (N,) or (N, R), found {ranks.shape}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
    return (ranks >= 1) & (ranks <= k)


def _named(ranked: Ints, k: int, num_items: int) -> NDArray[np.bool_]:  # (N, k) bool
    top = ranked[:, :k]
    if num_items < 1:
        raise ValueError(f"num_items: expected at least 1, found {num_items}")
    if np.any(top >= num_items):
        raise ValueError(f"ranked: item {top.max()} is outside the catalogue of {num_items} items")
    return top >= 0


def _check_ranked(name: str, lists: NDArray[Any], k: int) -> None:
    if lists.ndim != 2:
        raise ValueError(f"{name}: expected shape (N, W), found {lists.shape}")
    if not 1 <= k <= lists.shape[1]:
        raise ValueError(f"k: expected from 1 to the width of {name}, {lists.shape[1]}, found {k}")


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
        formula = entry.of_all or entry.per_user
        value = formula(lists, k or lists.width) if formula else None
        if value is not None:
            results[_called(entry, k)] = float(np.mean(value))
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
