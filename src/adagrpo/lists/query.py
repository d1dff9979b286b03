"""Queries to a recommender, their answers, and what orders lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.decoding import inclusion_log_prob
from adagrpo.lists.fusion import Fusion
from adagrpo.lists.sources import CandidateSource
from adagrpo.rewards.protocol import Reward
from adagrpo.semantic_ids.trie import Eligible
from adagrpo.types import Cases, ItemId, Past

# what made a list: the policy, re-ranked or not; the policy with other sources; a source or reward without the policy;
# the popular items, for a history without known items; a sample from the policy
Source = Literal["policy", "fused", "alone", "popular", "sampled"]


class Query(NamedTuple):
    """The request for one list."""

    history: Sequence[int]  # items, oldest first; none for a cold user
    exclude_history: bool | None = None  # leave the items of the history out; None: as the recommender does
    without: Sequence[int] = ()  # other items that are left out
    eligible: Eligible | None = None  # what may be in the list; None: the catalogue
    temperature: float = 0.0  # above 0 the list is sampled
    seed: int | None = None  # of the sampling
    baskets: Sequence[int] | None = None  # of each item of the history, ascending; None: items of one time are one
    days: Sequence[float] | None = None  # since 1970, of each item of the history; None: each item is a basket
    now: float | None = None  # days since 1970; None: the time of the last item
    user: ItemId | None = None  # whose list it is, and
    time: float | None = None  # when it is asked for, seconds since 1970: for a reward that wants to know
    shown: Sequence[int] = ()  # items that the user was shown of late, for a rule that leaves them out
    shown_days: Sequence[float] | None = None  # since 1970, of each of them; None: within its days


class Recommendations(NamedTuple):
    """The list for one history, best first."""

    items: list[ItemId]
    scores: list[float]  # log-probability, nats; with a reward, plus weight times reward over its standard deviation
    codes: list[list[int]]  # the Semantic ID of each item
    log_propensities: list[float] | None = None  # of sampled lists: of each item at its rank, nats
    source: Source = "policy"
    log_inclusions: list[float] | None = None  # of sampled lists: of each item being in the list, nats
    draw_keys: list[float] | None = None  # what the sample was ordered by, including the next item's

    def first(self, count: int) -> Recommendations:
        """Return the first `count` items, with inclusion probabilities of that list."""
        kept = min(count, len(self.items))
        shown = self._replace(items=self.items[:kept], scores=self.scores[:kept], codes=self.codes[:kept])
        if self.draw_keys is None or self.log_propensities is None:
            return shown
        threshold = self.draw_keys[kept]
        return shown._replace(
            log_propensities=self.log_propensities[:kept],
            log_inclusions=[inclusion_log_prob(score, threshold) for score in shown.scores],
            draw_keys=self.draw_keys[: kept + 1],
        )


class ListOrder(NamedTuple):
    """What orders lists besides the policy; nothing, by default."""

    reward: Reward | None = None  # re-ranks the beam, scores candidates of `fusion`, or orders all items
    reward_weight: float = 0.0  # in units of `within_list_std`, the reward's
    within_list_std: float = 1.0
    fusion: Fusion | None = None
    alone: CandidateSource | None = None  # makes the lists without the policy
    reward_alone: bool = False  # the reward orders all items, or the policy if it fails


POLICY_ORDER = ListOrder()


class ListPropensities(NamedTuple):
    """Propensities of `B` lists of at most `K` items under a policy that did not make them."""

    log_probs: NDArray[np.float64]  # (B, K) log-probability of each item at its position; -inf if it is never sampled
    items: NDArray[np.int64]  # (B, reach) sampled from the policy, padded with -1
    weights: NDArray[np.float64]  # (B, reach): Σ weight f(item) has the mean of f over a first item of the policy


def past_of_queries(queries: Sequence[Query], grouped: bool) -> Past:
    """Return the past of `B` queries.

    Args:
        grouped: baskets are known; items of a query without them are one each. Otherwise all are, at unknown times.
    """
    longest = max(len(query.history) for query in queries)
    items = np.full((len(queries), longest), -1, np.int64)
    ago = np.zeros_like(items)
    days = np.full(items.shape, np.nan, np.float32)
    for row, query in enumerate(queries):
        length = len(query.history)
        items[row, :length] = query.history
        known = None if not grouped else query.days if query.baskets is None else query.baskets
        number = np.arange(length) if known is None else np.asarray(known)
        changes = np.append(False, number[1:] != number[:-1])[:length]  # of baskets, whose numbers may have gaps
        of_basket = np.cumsum(changes)
        ago[row, :length] = of_basket[-1] - of_basket if length else 0
        if grouped and query.days is not None:
            now = query.days[-1] if query.now is None else query.now
            days[row, :length] = now - np.asarray(query.days, np.float64)
    return Past(torch.from_numpy(items), torch.from_numpy(ago), torch.from_numpy(days), grouped)


def by_item_within(query: Query) -> Query:
    """Return the query with each known basket in the order of item numbers, as in prepared histories.

    >>> by_item_within(Query([5, 3, 4], baskets=[0, 0, 1])).history
    [3, 5, 4]
    """
    known = query.days if query.baskets is None else query.baskets
    if known is None:
        return query
    order = np.lexsort((np.asarray(query.history), np.cumsum(np.append(False, np.diff(known) != 0))[: len(known)]))
    return query._replace(history=[query.history[index] for index in order])


def query_of(cases: Cases, row: int, *, eligible: Eligible | None = None) -> Query:
    """Return the query of a case."""
    histories, part = cases.histories, slice(*cases.histories.offsets[row : row + 2])
    return Query(
        histories.values[part].tolist(),
        eligible=eligible,
        baskets=None if histories.baskets is None else histories.baskets[part].tolist(),
        days=None if histories.days is None else histories.days[part].tolist(),
        now=None if cases.days is None else float(cases.days[row]),
    )
