"""Lists for users that a reward may want to know: a query's history says whose it is, see `UserHistory`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adagrpo.lists import Query, Recommender
from adagrpo.lists.query import ItemId, query_of
from adagrpo.pipeline.files import RunData
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import Asking, Cases, Histories, UserHistory


class UserRecommender(Recommender):
    """A `Recommender` whose reward is told who asks, and when."""

    def known(self, history: Sequence[ItemId]) -> tuple[list[int], list[ItemId]]:
        """See `Recommender.known`; the items of a `UserHistory` are one too."""
        items, unknown = super().known(history)
        return (UserHistory(items, history.user, history.time) if isinstance(history, UserHistory) else items), unknown

    def _batch(self, queries: Sequence[Query], masked: bool) -> Histories:
        histories = [query.history for query in queries]
        users = [one.user if isinstance(one, UserHistory) else None for one in histories]
        times = [one.time if isinstance(one, UserHistory) else None for one in histories]
        return super()._batch(queries, masked)._replace(asking=Asking(users, times))


def queries_of(data: RunData, cases: Cases, rows: NDArray[np.integer], eligible: Eligible | None = None) -> list[Query]:
    """Return the queries of some cases, which say whose they are."""
    users, times = cases.users[rows].tolist(), cases.asking(rows).times
    queries = [query_of(cases, row, eligible=eligible) for row in rows.tolist()]
    return [
        query._replace(history=UserHistory(query.history, data.user_ids[user], time))
        for query, user, time in zip(queries, users, times, strict=True)
    ]
