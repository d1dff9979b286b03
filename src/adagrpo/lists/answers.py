"""Batched recommendation in the ids of the logs, behind `recommend` in Python and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from adagrpo.errors import UserError
from adagrpo.lists.eligibility import Narrowing
from adagrpo.lists.query import ItemId, Query, Source
from adagrpo.lists.recommender import Recommender


class Answer(NamedTuple):
    """The list for one history, best first."""

    items: list[ItemId]
    scores: list[float]
    codes: list[list[int]]
    unknown: list[ItemId]  # ids of the history that name no item; they were left out of it
    source: Source = "policy"


def answer(
    served: Recommender,
    histories: Sequence[Sequence[ItemId]],
    k: int,
    *,
    exclude: Sequence[Sequence[ItemId]] | None = None,
    days: Sequence[Sequence[float] | None] | None = None,
    now: float | None = None,
    narrowing: Narrowing | None = None,
    popular: bool = False,
    batch_size: int = 256,
    report: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Return the first `k` items of the list for each history, in the ids of the logs.

    Args:
        histories: item ids, oldest first; without a known id the list is empty, or see `popular`.
        exclude: ids to leave out, one list per history; unknown ids are ignored.
        days: when each item of each history was had, in days since 1970; None: unknown.
        now: days since 1970; None: the time of each history's last item.
        narrowing: from `Recommender.narrow`; applies to all lists.
        popular: return the most popular items for a history without a known id.
        report: called with the number of histories done.

    Raises:
        UserError: `k` exceeds the beam width, or `exclude` does not match the histories.
    """
    if not 1 <= k <= served.width:
        raise UserError(f"k: {k} is none of 1 to {served.width}, the beam of the recipe (evaluation.beam_width)")
    _check_lists("histories", histories, len(histories))
    if exclude is not None:
        _check_lists("exclude", exclude, len(histories))
    known, unknown = zip(*map(served.known, histories), strict=True) if histories else ((), ())
    left_out = None if exclude is None else [served.known(ids)[0] for ids in exclude]
    answers = [Answer([], [], [], names) for names in unknown]
    held = narrowing or Narrowing((), None, len(served.item_ids))
    order = sorted((row for row, items in enumerate(known) if items or popular), key=lambda row: -len(known[row]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        without = [(*held.without, *(() if left_out is None else left_out[row])) for row in rows]
        times = [None if days is None else served.days_of(histories[row], days[row]) for row in rows]
        queries = [
            Query(known[row], None, out, held.eligible, days=when, now=now)
            for row, out, when in zip(rows, without, times, strict=True)
        ]
        for row, found in zip(rows, served.recommend(queries), strict=True):
            answers[row] = Answer(found.items[:k], found.scores[:k], found.codes[:k], unknown[row], found.source)
        report(first + len(rows))
    return answers


def _check_lists(name: str, lists: Sequence[Sequence[ItemId]], count: int) -> None:
    if len(lists) != count:
        raise UserError(f"{name}: holds {len(lists)} lists for {count} histories; give one for each")
    for place, ids in enumerate(lists):
        if isinstance(ids, str) or not isinstance(ids, Sequence | np.ndarray):
            raise UserError(f"{name}[{place}]: is {ids!r}; a list of item ids is wanted, one list for each user")
