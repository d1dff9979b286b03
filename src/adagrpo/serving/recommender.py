"""What a served policy answers: beam search held to the catalogue, in the ids of the logs.

The list of a history is the one that evaluation measures: the same beam width, masking and precision, and where a
reward is given the order of `log-probability + w · reward` that `rerank` stands for in a comparison.

What a query rules out is ruled out within the search, so that its list is full wherever enough other items exist. A
query without a history is answered with the most popular items of training; its scores are log((n_i + 1) / (n + V)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adagrpo.data.sequences import older_items, pad
from adagrpo.decoding import beam_search
from adagrpo.evaluation.predictions import without_history
from adagrpo.networks.layers import Precision, mixed_precision, precision_used
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.scoring import ask_reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Eligible, Excluded
from adagrpo.types import Histories, Ragged

__all__ = ["ItemId", "Query", "Recommendations", "Recommender", "Source"]

ItemId = int | str
Source = Literal["policy", "popular"]


class Query(NamedTuple):
    """What one list is asked for."""

    history: Sequence[int]  # items, oldest first; none for a cold user
    exclude_history: bool | None = None  # leave the items of the history out; None: as the recommender does
    without: Sequence[int] = ()  # other items that are left out
    eligible: Eligible | None = None  # what may be in the list; None: the catalogue
    temperature: float = 0.0  # above 0 the list is drawn, not searched
    seed: int | None = None  # of the drawing


class Recommendations(NamedTuple):
    """The list of one history, best first."""

    items: list[ItemId]
    scores: list[float]  # log-probability, nats; with a reward, plus weight times reward
    codes: list[list[int]]  # the Semantic ID of each item
    log_propensities: list[float] | None = None  # of drawn lists: how likely each item was at its place, nats
    source: Source = "policy"  # "popular" for a history that says nothing


class Recommender:
    """A policy that no longer trains, its catalogue, and the ids that the logs have for the items."""

    def __init__(
        self,
        policy: Policy[Any, Any],
        catalog: Catalog,
        item_ids: Sequence[ItemId],  # V of them
        *,
        width: int,
        max_history: int,
        mask_history: bool,
        precision: Precision = "auto",
        reward: Reward | None = None,
        reward_weight: float = 0.0,
        popularity: NDArray[np.int64] | None = None,  # (V,)
    ) -> None:
        """Freeze the policy.

        Args:
            policy: put into evaluation mode.
            catalog: of the policy.
            item_ids: ids of the logs, in the order of items.
            width: hypotheses of the beam; no list is longer.
            max_history: items of a history that the policy sees, the last ones.
            mask_history: leave the items of the whole history out of the list, where a request says nothing of it.
            precision: of the policy; the attribute of this name says what that is on this machine.
            reward: re-ranks the beam.
            reward_weight: `w`.
            popularity: (V,) training interactions of each item; without them a query without a history gets no item.
        """
        self.policy = policy.eval().frozen()
        self.catalog, self.item_ids = catalog, list(item_ids)
        self.width, self.max_history, self.mask_history = width, max_history, mask_history
        self.precision: Precision = precision_used(self.policy, precision)
        self.reward, self.reward_weight = reward, reward_weight
        self._codes = catalog.codes.cpu().numpy()
        self._items = {str(name): item for item, name in enumerate(self.item_ids)}
        self._counts = popularity
        self._popular = None if popularity is None else np.argsort(-popularity, kind="stable")

    def known(self, history: Sequence[ItemId]) -> tuple[list[int], list[ItemId]]:
        """The items that ids name, and the ids that name none; `7` and `"7"` are the same id."""
        rows = [(name, self._items.get(str(name), -1)) for name in history]
        return [item for _, item in rows if item >= 0], [name for name, item in rows if item < 0]

    def recommend(self, queries: Sequence[Query]) -> list[Recommendations]:
        """The lists of `B` queries, none of which depends on the others.

        Returns:
            `B` lists of at most `width`; shorter where the catalogue, what is eligible of it, or the search holds no
            more.
        """
        alike: dict[tuple[bool, bool], list[int]] = {}  # rows that are searched in the same way
        answers: dict[int, Recommendations] = {}
        for row, query in enumerate(queries):
            if len(query.history):
                narrowed = bool(len(query.without)) or query.eligible is not None
                alike.setdefault((self._masks(query), narrowed), []).append(row)
            else:
                answers[row] = self._most_popular(query)
        for (masked, narrowed), rows in alike.items():
            rows.sort(key=lambda row: id(queries[row].eligible))  # those of one mask are looked up together
            answers |= zip(rows, self._search([queries[row] for row in rows], masked, narrowed), strict=True)
        return [answers[row] for row in range(len(queries))]

    def _masks(self, query: Query) -> bool:
        return self.mask_history if query.exclude_history is None else query.exclude_history

    @torch.no_grad()
    def _search(self, queries: Sequence[Query], masked: bool, narrowed: bool) -> list[Recommendations]:
        batch = self._batch([query.history for query in queries], masked)
        held = self.width + (self.max_history if masked else 0)
        excluded = self._excluded(batch, queries, masked) if narrowed else None
        with mixed_precision(self.policy, self.precision):
            context = self.policy.encode(batch)
            beams = beam_search(self.policy, context, held, trie=self.catalog.trie, excluded=excluded)
        if masked and not narrowed:
            items, scores = without_history(
                self.policy, context, self.catalog, beams, batch, self.width, self.precision
            )
        else:
            items, scores = self.catalog.lookup(beams.codes)[:, : self.width], beams.scores[:, : self.width]
        if self.reward is not None:
            rewards = ask_reward(self.reward, batch, items).nan_to_num(0.0)
            scores, order = (scores + self.reward_weight * rewards).sort(dim=1, descending=True, stable=True)
            items = items.gather(1, order)
        return [self._named(*row) for row in zip(items.tolist(), scores.tolist(), strict=True)]

    def _excluded(self, batch: Histories, queries: Sequence[Query], masked: bool) -> Excluded:
        """What the searches of a batch never enter: what a query leaves out, and with `masked` its history."""
        longest = max(len(query.without) for query in queries)
        rows = [[*query.without, *[-1] * (longest - len(query.without))] for query in queries]
        items = torch.tensor(rows, dtype=torch.int64, device=self.catalog.codes.device)
        closed = torch.cat([items, batch.whole], dim=1) if masked else items
        return self.catalog.trie.excluding(closed, [query.eligible for query in queries])

    def _most_popular(self, query: Query) -> Recommendations:
        """The most popular items that the query admits; equals by the number of the item."""
        if self._popular is None or self._counts is None:
            return Recommendations([], [], [], source="popular")
        order = self._popular
        if query.eligible is not None:
            order = order[query.eligible.items.cpu().numpy()[order]]
        left_out = {*query.without}
        found = [int(item) for item in order[: self.width + len(left_out)] if int(item) not in left_out][: self.width]
        shares = np.log((self._counts[found] + 1) / (self._counts.sum() + len(self._counts)))
        return self._named(found, shares.tolist())._replace(source="popular")

    def _batch(self, histories: Sequence[Sequence[int]], masked: bool) -> Histories:
        offsets = np.cumsum([0, *map(len, histories)])
        ragged = Ragged(np.concatenate([np.asarray(history, np.int32) for history in histories]), offsets)
        rows = np.arange(len(histories))
        padded = pad(ragged, rows, self.max_history)
        device: torch.device = self.catalog.codes.device
        older = older_items(ragged, rows, self.max_history).to(device) if masked else None
        return Histories(padded.items.to(device), padded.lengths.to(device), older=older)

    def _named(self, items: list[int], scores: list[float]) -> Recommendations:
        count = sum(item >= 0 for item in items)  # places without an item are last
        found = items[:count]
        return Recommendations([self.item_ids[item] for item in found], scores[:count], self._codes[found].tolist())
