"""A reward that knows more than any ranker can: what users want just then.

In a simulated world no item is bought twice, so a history names its user and the moment, and with them the taste that
`adagrpo.data.simulation.truth` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.simulation.truth import Truth
from adagrpo.errors import UserError

__all__ = ["taste_of"]

Ids = Sequence[Sequence[str]]
Score = Callable[[Ids, Ids], list[list[float]]]

LAST = 6  # items of a history by which its user and the moment are told
LOGITS = 4.0  # by how much the logits of utility are divided, so that they spread as scores of rankers do


def taste_of(truth: Truth) -> Score:
    """The logit of the true utility, for `CallableReward`: of histories and candidates, in ids.

    Args:
        truth: of all users and items of the world.
    """
    place = {item: row for row, item in enumerate(truth.item_ids)}
    moments = _moments(truth)

    def taste(histories: Ids, candidates: Ids) -> list[list[float]]:
        scores = []
        for history, items in zip(histories, candidates, strict=True):
            moment = moments.get(tuple(place[item] for item in history[-LAST:]))
            if moment is None:
                raise UserError(f"no user has a history that ends with {', '.join(history[-LAST:])}")
            rows = [place[item] for item in items]
            scores.append(((truth.items[rows] @ truth.tastes[moment] + truth.bias[rows]) / LOGITS).tolist())
        return scores

    return taste


def _moments(truth: Truth) -> dict[tuple[int, ...], int]:
    """The row of the purchase that follows a history, by the history's last items; after the last one, its own."""
    users, items = np.divmod(truth.purchases, len(truth.item_ids))
    found: dict[tuple[int, ...], int] = {}
    for rows in np.split(np.arange(len(users)), np.flatnonzero(np.diff(users)) + 1):
        bought: NDArray[np.int64] = items[rows]
        for step in range(1, len(rows) + 1):
            for begin in range(max(0, step - LAST), step):  # a training history may begin anywhere
                key = tuple(int(item) for item in bought[begin:step])
                found[key] = int(
                    rows[min(step, len(rows) - 1)]
                )  # short histories that two users share: the last one's taste
    return found
