"""Points to places of limited capacity, the closest pairs first.

The pair (point, place) of the smallest distance is made, then the next smallest among points without a place and
places with room, and so on. What comes out is stable: no point is nearer to another place that would rather have it
than one of the points it holds.

Source: deferred acceptance (Gale & Shapley, American Mathematical Monthly 1962). Where both sides rank by one distance
it gives what the greedy loop over all sorted pairs gives, in rounds over arrays and without the sort: mostly a few
dozen, as many as there are places in the worst case.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign_within(
    distances: NDArray[np.floating],  # (N, K)
    capacities: NDArray[np.integer],  # (K,)
) -> NDArray[np.int64]:
    """Give every point a place, no place more points than its capacity.

    Args:
        distances: (N, K) finite distances of the points from the places. Equal ones are decided for the point, then the
            place, of lower index.
        capacities: (K,) integers of at least 0.

    Returns:
        (N,) int64, the place of each point.

    Raises:
        ValueError: the shapes disagree, a distance is not finite, or the places hold fewer than N points.

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
    # what a point must be below to be taken: the worst point that a full place holds, by (distance, index)
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
