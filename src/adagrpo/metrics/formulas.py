r"""Formulas of the metrics of ranked lists.

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
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
