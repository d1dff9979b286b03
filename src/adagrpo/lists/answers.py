"""Batched recommendation in the ids of the logs, behind `recommend`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from adagrpo.errors import UserError
from adagrpo.lists.eligibility import Narrowing
from adagrpo.lists.explanation import reasons
from adagrpo.lists.query import Query, Source
from adagrpo.lists.recommender import Recommender
from adagrpo.types import ItemId


class Answer(NamedTuple):
    """The list for one history, best first."""

    items: list[ItemId]
    scores: list[float]
    codes: list[list[int]]
    unknown: list[ItemId]  # ids of the history that name no item; they were left out of it
    source: Source = "policy"
    reasons: list[dict[str, Any]] | None = None  # of each item, see `adagrpo.lists.explanation`


def answer(
    served: Recommender,
    histories: Sequence[Sequence[ItemId]],
    k: int,
    *,
    exclude: Sequence[Sequence[ItemId]] | None = None,
    baskets: Sequence[Sequence[int] | None] | None = None,
    days: Sequence[Sequence[float] | None] | None = None,
    now: float | None = None,
    users: Sequence[ItemId | None] | None = None,
    time: float | None = None,
    narrowing: Narrowing | None = None,
    popular: bool = False,
    batch_size: int = 256,
    explain: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Return the first `k` items for each history, in ids of the logs.

    Args:
        histories: item ids, oldest first; without a known id the list is empty, unless `popular`.
        exclude: ids left out, one list per history; unknown ones are ignored.
        baskets: number of the basket of each item, ascending; None: items of one time are one.
        days: since 1970, of each item; None: unknown.
        now: days since 1970; None: the time of each history's last item.
        time: seconds since 1970, for a reward that asks; None: unknown.
        narrowing: from `Recommender.narrow`, for all lists.

    Raises:
        UserError: `k` exceeds the beam width, or `exclude` does not match.
    """
    if not 1 <= k <= served.width:
        raise UserError(f"k: {k} is none of 1 to {served.width}, the beam of the recipe (evaluation.beam_width)")
    if exclude is not None and len(exclude) != len(histories):
        raise UserError(f"exclude: holds {len(exclude)} lists for {len(histories)} histories; give one for each")
    for name, lists in (("histories", histories), ("exclude", () if exclude is None else exclude)):
        for index, ids in enumerate(lists):
            if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
                raise UserError(f"{name}[{index}]: is {ids!r}; a list of item ids is wanted, one list for each user")
    known, unknown = zip(*map(served.known, histories), strict=True) if histories else ((), ())
    left_out = None if exclude is None else [served.known(ids)[0] for ids in exclude]
    answers = [Answer([], [], [], names) for names in unknown]
    held = narrowing or Narrowing((), None, len(served.item_ids))
    order = sorted((row for row, items in enumerate(known) if items or popular), key=lambda row: -len(known[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        queries = [
            Query(
                known[row],
                without=(*held.without, *(() if left_out is None else left_out[row])),
                eligible=held.eligible,
                baskets=None if baskets is None else served.of_known(histories[row], baskets[row]),
                days=None if days is None else served.of_known(histories[row], days[row]),
                now=now,
                user=None if users is None else users[row],
                time=time,
            )
            for row in rows
        ]
        for row, query, found in zip(rows, queries, served.recommend(queries), strict=True):
            told = reasons(served, query, found.items[:k], found.source) if explain else None
            answers[row] = Answer(found.items[:k], found.scores[:k], found.codes[:k], unknown[row], found.source, told)
        report(first + len(rows))
    return answers
