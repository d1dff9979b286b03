"""Quality of a ranker as a reward, per case, overall and by strata that do not depend on its scores.

    AUC         = share of the other items that score below the logged one, ties count one half
    NDCG@k      = 1[r <= k] / log2(1 + r)                   r: the logged item's rank in the whole catalogue, ties above
    ECE         = Σ_bins (n_bin / N) |hit rate_bin - mean confidence_bin|        (Naeini et al. 2015)
    correlation = Spearman's, of scores and true utilities over items, in simulated worlds

Confidence is the ranker's probability of its top item.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adagrpo import metrics
from adagrpo.statistics import bootstrap_mean
from adagrpo.types import Floats, Ints

_NUMBERS = 2**24  # scores that are taken as float64 at a time


class CaseQuality(NamedTuple):
    """Quality of a ranker's scores in each of `N` cases."""

    auc: Floats  # (N,)
    ndcg: Floats  # (N,)
    confidence: Floats  # (N,) probability of the item ranked first
    hit: NDArray[np.bool_]  # (N,) that item is the logged one


def case_quality(scores: NDArray[np.float32], targets: Ints) -> CaseQuality:  # scores (N, V), targets (N,)
    """Rank the whole catalogue in every case."""
    own = np.take_along_axis(scores, targets[:, None], 1)
    above, level = (scores > own).sum(1), (scores == own).sum(1) - 1
    # some rows at a time: as float64 they take several times what the scores do
    step = max(1, _NUMBERS // scores.shape[1])
    parts = [
        np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True)).sum(1)
        for rows in np.split(scores, range(step, len(scores), step))
    ]
    return CaseQuality(
        auc=1 - (above + level / 2) / (scores.shape[1] - 1),
        ndcg=metrics.ndcg(1 + above + level, 10),
        confidence=1 / np.concatenate(parts),
        hit=scores.argmax(1) == targets,
    )


class ShownQuality(NamedTuple):
    """Quality of a ranker's scores of `N` impressions, within each user's."""

    auc: Floats  # (N,) of a clicked one: the share of the user's others, not clicked, that it is put above; else NaN
    ndcg: Floats  # (N,) of the user's whole list, at a user's first impression; else NaN


def shown_quality(
    scores: NDArray[np.floating[Any]],  # (N,)
    clicked: NDArray[np.bool_],  # (N,)
    users: NDArray[np.integer[Any]],  # (N,) ascending
    *,
    k: int = 10,  # depth of the NDCG, Σ_clicked 1[r <= k] / log2(1 + r) over its best value; ties share their mean gain
) -> ShownQuality:
    """Rank each user's impressions; NaN where all or nothing was clicked."""
    auc, ndcg = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    starts = np.flatnonzero(np.diff(users, prepend=users[:1] - 1))
    for first, last in pairwise([*starts.tolist(), len(scores)]):
        own, chosen = scores[first:last], clicked[first:last]
        wanted, others = own[chosen], own[~chosen]
        if not len(wanted) or not len(others):
            continue
        auc[first:last][chosen] = ((wanted[:, None] > others) + 0.5 * (wanted[:, None] == others)).mean(1)
        gains = metrics.ndcg(np.arange(1, len(own) + 1), k)
        _, group, sizes = np.unique(-own, return_inverse=True, return_counts=True)
        shared = np.add.reduceat(gains, np.cumsum(sizes) - sizes) / sizes  # level scores stand in any order
        ndcg[first] = shared[group][chosen].sum() / gains[: len(wanted)].sum()
    return ShownQuality(auc, ndcg)


def calibration_bins(confidence: Floats, hit: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return cases, mean confidence and hit rate of ten equal bins over [0, 1], without empty ones."""
    bin_index = np.minimum((confidence * 10).astype(np.int64), 9)
    parts = [bin_index == index for index in np.unique(bin_index)]
    return [
        {"cases": int(part.sum()), "confidence": float(confidence[part].mean()), "hit_rate": float(hit[part].mean())}
        for part in parts
    ]


def expected_calibration_error(confidence: Floats, hit: NDArray[np.bool_]) -> float:
    """Return the ECE of (N,) confidences in [0, 1], N at least 1."""
    rows = calibration_bins(confidence, hit)
    return sum(row["cases"] * abs(row["hit_rate"] - row["confidence"]) for row in rows) / len(confidence)


def rank_correlation(
    scores: NDArray[np.floating[Any]],  # (N, K)
    utilities: NDArray[np.floating[Any]],  # (N, K)
    known: NDArray[np.bool_] | None = None,  # (N, K)
) -> Floats:  # (N,)
    """Return Spearman's correlation of rows' known entries, NaN if a side is constant."""
    there = np.ones(scores.shape, np.bool_) if known is None else known

    def centred(values: NDArray[np.floating[Any]]) -> Floats:
        # unknown entries share the lowest ranks, a common shift that centring removes
        ranks = stats.rankdata(np.where(there, values, -np.inf), axis=1)
        mean = np.where(there, ranks, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        return np.where(there, ranks - mean[:, None], 0.0)

    one, other = centred(scores), centred(utilities)
    norms = np.sqrt((one**2).sum(1) * (other**2).sum(1))
    return np.where(norms > 0, (one * other).sum(1) / np.where(norms > 0, norms, 1), np.nan)


def popularity_bands(popularity: Ints) -> NDArray[np.str_]:  # (V,)
    """Return (V,) "tail" (at most 20 % of interactions), "middle" (with it at most 80 %) or "head"."""
    below = metrics.tail_items(popularity, 0.8)
    return np.where(metrics.tail_items(popularity, 0.2), "tail", np.where(below, "middle", "head"))


def band_names(edges: tuple[int, ...]) -> list[str]:
    """Return the names of bands of counts from 0 and the edges.

    >>> band_names((1, 10))
    ['0', '1-9', '10+']
    """
    starts = (0, *edges)
    return [str(a) if a == b - 1 else f"{a}-{b - 1}" for a, b in pairwise(starts)] + [f"{starts[-1]}+"]


def band(values: Ints, edges: tuple[int, ...]) -> NDArray[np.str_]:
    """Return the name of each count's band."""
    return np.array(band_names(edges))[np.searchsorted(edges, values, side="right")]


def interval(values: Floats, users: NDArray[np.integer[Any]]) -> Mapping[str, float] | None:
    """Return the mean of users' means, NaN ignored, with a 95 % bootstrap interval."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    _, rows = np.unique(users[known], return_inverse=True)
    means = np.bincount(rows, values[known]) / np.bincount(rows)
    estimate = bootstrap_mean(means, resamples=1000)
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "users": len(means)}
