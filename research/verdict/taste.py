"""Rewards that know more than any ranker can: what users want just then, and how often an item was shown.

A `callable` reward gets a history and candidates, in ids. In a simulated world no item is bought twice, so a history
names its user and the moment, and with them the taste that `adagrpo.data.simulation.truth` holds. The attribute says
which: `<world>_taste` is the logit of the true utility, `<world>_shown` the logarithm of the times shown. Worlds are
registered by `research.verdict.measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adagrpo.data.simulation.truth import Truth
from adagrpo.errors import UserError

__all__ = ["register"]

Ids = Sequence[Sequence[str]]
Score = Callable[[Ids, Ids], list[list[float]]]

LAST = 6  # items of a history by which its user and the moment are told
LOGITS = 4.0  # by how much the logits of utility are divided, so that they spread as scores of rankers do

_worlds: dict[str, Score] = {}


def register(world: str, truth: Truth, shown: Mapping[str, int]) -> None:
    """Make the rewards of a world known.

    Args:
        world: its name.
        truth: of all its users and items.
        shown: how often each item was shown.
    """
    place = {item: row for row, item in enumerate(truth.item_ids)}
    count = np.log1p([shown.get(item, 0) for item in truth.item_ids])
    count = (count - count.mean()) / count.std()
    moments = _moments(truth)

    def taste(histories: Ids, candidates: Ids) -> list[list[float]]:
        scores = []
        for history, items in zip(histories, candidates, strict=True):
            moment = moments.get(tuple(place[item] for item in history[-LAST:]))
            if moment is None:
                raise UserError(f"no user of {world} has a history that ends with {', '.join(history[-LAST:])}")
            rows = [place[item] for item in items]
            scores.append(((truth.items[rows] @ truth.tastes[moment] + truth.bias[rows]) / LOGITS).tolist())
        return scores

    def times_shown(histories: Ids, candidates: Ids) -> list[list[float]]:
        return [[float(count[place[item]]) for item in items] for items in candidates]

    _worlds[f"{world}_taste"], _worlds[f"{world}_shown"] = taste, times_shown


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


def __getattr__(name: str) -> Score:
    if name not in _worlds:
        raise AttributeError(name)
    return _worlds[name]
