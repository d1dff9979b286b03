"""Re-ranking by a reward: the unit of its weight, and the grid of weights.

    score(o) = log π(o | x) + w · RM(x, o) / σ,    σ² = (1/N) Σ_n (1/K_n) Σ_k (RM(x_n, o_nk) - mean_k RM(x_n, o_nk))²

σ is the reward's within-list standard deviation on the starting policy's lists for the `N` validation cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.types import Floats, Ints

WEIGHTS = (0.0, *(2.0**power for power in range(-3, 7)))  # 0, 1/8 to 64
ERRORS = 1.96  # standard errors within which a weight counts as no worse than the best

Scores = TypeVar("Scores", NDArray[np.floating[Any]], Tensor)


def within_list_std(items: NDArray[np.int64], rewards: NDArray[np.floating[Any]]) -> float:  # items and rewards (N, W)
    """Return σ of rewards (N, W) of items (N, W), -1 for none; 1 if no list's rewards differ."""
    there = items >= 0
    filled = there.any(axis=1)
    kept = np.where(there, rewards.astype(np.float64), np.nan)[filled]
    std = float(np.sqrt(np.nanvar(kept, axis=1).mean())) if len(kept) else 0.0
    return std if std > 0 else 1.0


def mixed_scores(log_probs: Scores, rewards: Scores, weight: float, std: float) -> Scores:
    """Return `log π + weight · reward / std`, elementwise, keeping single precision."""
    return log_probs + (weight / std) * rewards


def best_weight(by_weight: Mapping[float, NDArray[np.floating[Any]]]) -> float:
    """Return the weight with the highest mean of its (N,) values; ties: the smallest."""
    return max(by_weight, key=lambda weight: (float(by_weight[weight].mean()), -weight))


def least_of_the_best(by_weight: Mapping[float, NDArray[np.floating[Any]]]) -> float:
    """Return the smallest weight not significantly worse than the best,

        min { w : mean_n(d_n) ≥ -1.96 · s(d) / √N },    d_n = value_n(w) - value_n(best weight),

    the one-standard-error rule (Breiman et al. 1984) with paired differences and 1.96 standard errors.
    """
    best = by_weight[best_weight(by_weight)]
    less = {weight: np.asarray(values - best, dtype=np.float64) for weight, values in by_weight.items()}
    return min(weight for weight, d in less.items() if d.mean() >= -ERRORS * d.std() / np.sqrt(len(d)))


def edge_warning(weight: float) -> str | None:
    """Return a warning if a weight is the grid's largest, else None."""
    if weight < WEIGHTS[-1]:
        return None
    return (
        f"the chosen weight of the reward, {weight:g} spreads, is the largest that is tried, so a larger one may be"
        " better still: compare it with the order of the reward alone"
    )


CLIPPED = 0.1  # share of the cases whose weight is bounded
EXPOSURE_POWER = 0.5  # by default


def exposure_weights(shown: Ints) -> Floats:
    """Return (N,) 1 / (times the logged item was shown), counts clipped from below at their tenth percentile.

    Clipped inverse propensities (Schnabel et al. 2016).

    >>> exposure_weights(np.array([1, 10, 10, 20])).round(2).tolist()
    [0.27, 0.1, 0.1, 0.05]
    """
    counts = np.maximum(shown.astype(np.float64), 1.0)
    return np.asarray(1 / np.maximum(counts, np.quantile(counts, CLIPPED)))


def case_weights(shown: Ints, power: float = EXPOSURE_POWER) -> Floats:
    """Return (N,) `exposure_weights ** power` of mean 1, the weights of cases in a choice between lists.

    A case whose item was never shown weighs 1. The default is the root (`research/decisions`).

    >>> case_weights(np.array([1, 10, 10, 20, 0])).round(2).tolist()
    [1.51, 0.92, 0.92, 0.65, 1.0]
    """
    known, weights = shown > 0, np.ones(len(shown))
    if known.any():
        powers = exposure_weights(shown[known]) ** power
        weights[known] = powers / powers.mean()
    return weights
