r"""Re-ranking, the one place that says what a weight of the reward means and which weights are tried.

    score(o) = log π(o | x) + w · RM(x, o) / σ,    σ² = (1/N) Σ_n (1/K_n) Σ_k (RM(x_n, o_nk) - mean_k RM(x_n, o_nk))²

`w` is in spreads: a weight of 1 adds as much to an item's log-probability as its reward is above another's in units of
σ, the spread of the reward. σ is measured on the lists of the starting policy for the `N` validation cases: the
variance of the reward over the `K_n` items of a list, divided by their number, a mean over the lists that hold an item,
and the root of it. It is measured whenever the policy or the reward is fitted anew, and stored with the weights that
were chosen (`adagrpo.pipeline.stages.choose_weight`), so that a weight means the same in `diagnose`, in `evaluate` and
`compare`, in the target of `distill` and in `serve`.

A single grid is searched, `WEIGHTS`: 0 and a ladder of powers of two. A weight at its end says that the grid, and not
the data, may have decided (`edge_warning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

WEIGHTS = (0.0, *(2.0**power for power in range(-3, 7)))  # in spreads: 0, 1/8 to 64
ERRORS = 1.96  # standard errors within which a weight counts as no worse than the best

Scores = TypeVar("Scores", NDArray[np.floating[Any]], Tensor)


def reward_spread(
    items: NDArray[np.int64],  # (N, W)
    rewards: NDArray[np.floating[Any]],  # (N, W)
) -> float:
    """σ, see the module's text.

    Args:
        items: (N, W) lists, -1 where a place holds no item.
        rewards: (N, W) of those items, not read where there is none.

    Returns:
        1 where no list holds items of different rewards: a weight then changes nothing.

    Example:
        >>> reward_spread(np.array([[4, 7, -1], [2, 3, 9]]), np.array([[0.0, 2.0, np.nan], [5.0, 5.0, 5.0]]))
        0.7071067811865476
    """
    there = items >= 0
    filled = there.any(axis=1)
    kept = np.where(there, rewards.astype(np.float64), np.nan)[filled]
    spread = float(np.sqrt(np.nanvar(kept, axis=1).mean())) if len(kept) else 0.0
    return spread if spread > 0 else 1.0


def mixed_scores(log_probs: Scores, rewards: Scores, weight: float, spread: float) -> Scores:
    """`log π + weight · reward / spread`, elementwise; single precision stays so, as the service computes it.

    Args:
        weight: in spreads.
    """
    return log_probs + (weight / spread) * rewards


def best_weight(by_weight: Mapping[float, NDArray[np.floating[Any]]]) -> float:
    """The weight of the highest mean, the least of equals.

    Args:
        by_weight: (N,) a value of each case, by weight; the higher the better.
    """
    return max(by_weight, key=lambda weight: (float(by_weight[weight].mean()), -weight))


def least_of_the_best(by_weight: Mapping[float, NDArray[np.floating[Any]]]) -> float:
    """The least weight whose values are not shown to be below those of the best one,

        min { w : mean_n(d_n) ≥ -1.96 · s(d) / √N },    d_n = value_n(w) - value_n(best weight),

    the rule of one standard error (Breiman et al. 1984) with the error of the paired difference, at two.

    Args:
        by_weight: (N,) a value of each case, by weight; the higher the better.

    Example:
        >>> values = np.array([0.0, 0.4, 0.0, 0.5] * 25)
        >>> least_of_the_best({0.0: values, 0.5: values + 0.1, 1.0: values + np.array([0.0, 0.22] * 50)})
        0.5
    """
    best = by_weight[best_weight(by_weight)]
    less = {weight: np.asarray(values - best, dtype=np.float64) for weight, values in by_weight.items()}
    return min(weight for weight, d in less.items() if d.mean() >= -ERRORS * d.std() / np.sqrt(len(d)))


def edge_warning(weight: float) -> str | None:
    """Warn of a chosen weight at the end of the grid; None for any other."""
    if weight < WEIGHTS[-1]:
        return None
    return (
        f"the chosen weight of the reward, {weight:g} spreads, is the largest that is tried, so a larger one may be"
        " better still: compare it with the order of the reward alone"
    )
