"""Stable assignment of points to bins of limited capacity, closest pairs first.

Source: deferred acceptance (Gale & Shapley, American Mathematical Monthly 1962). With one distance for both sides it
equals the greedy loop over sorted pairs, in at most K rounds (mostly a few dozen) over arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign_within(
    distances: NDArray[np.floating],  # (N, K)
    capacities: NDArray[np.integer],  # (K,)
) -> NDArray[np.int64]:
    """Return the (N,) int64 bin of each point, with no bin above its capacity.

    Args:
        distances: finite; ties go to the lower point, then the lower bin.
        capacities: integers, at least 0.

    Raises:
        ValueError: shapes disagree, a distance is not finite, or capacities are too small.

    Example:
        >>> assign_within(np.array([[0.0, 5.0], [1.0, 9.0], [2.0, 3.0]]), np.array([2, 2])).tolist()
        [0, 0, 1]
    """
    if distances.ndim != 2 or capacities.shape != distances.shape[1:] or not np.isfinite(distances).all():
        shapes = f"distances {distances.shape}, capacities {capacities.shape}"
        raise ValueError(f"{shapes}: expected finite (N, K) and (K,)")
    points, places = distances.shape
    if (capacities < 0).any() or capacities.sum() < points:
        raise ValueError(f"capacities sum to {capacities.sum()}: expected none below 0 and at least {points} together")
    chosen = np.full(points, -1, dtype=np.int64)
    # threshold of each full bin: its worst point, by (distance, index)
    worst = np.where(capacities > 0, np.inf, -np.inf)
    worst_point = np.full(places, points)
    looking = np.arange(points)
    while len(looking):
        offers = distances[looking]
        welcome = (offers < worst) | ((offers == worst) & (looking[:, None] < worst_point))
        chosen[looking] = np.where(welcome, offers, np.inf).argmin(axis=1)
        held = np.flatnonzero(chosen >= 0)
        order = held[np.lexsort((held, distances[held, chosen[held]], chosen[held]))]
        counts = np.bincount(chosen[order], minlength=places)
        rank = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        room = capacities[chosen[order]]
        last = order[rank == room - 1]
        worst[chosen[last]], worst_point[chosen[last]] = distances[last, chosen[last]], last
        looking = np.sort(order[rank >= room])
        chosen[looking] = -1
    return chosen
