"""What a served policy answers: beam search held to the catalogue, in the ids of the logs.

The list of a history is the one that evaluation measures: the same beam width, masking and precision, and where a
reward is given the order of `log-probability + w · reward` that `rerank` stands for in a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adagrpo.data.sequences import older_items, pad
from adagrpo.decoding import beam_search
from adagrpo.evaluation.predictions import without_history
from adagrpo.networks.layers import Precision, mixed_precision, precision_used
from adagrpo.policies.policy import Context, Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.scoring import ask_reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories, Ragged

__all__ = ["ItemId", "Recommendations", "Recommender"]

ItemId = int | str


class Recommendations(NamedTuple):
    """The list of one history, best first."""

    items: list[ItemId]
    scores: list[float]  # log-probability, nats; with a reward, plus weight times reward
    codes: list[list[int]]  # the Semantic ID of each item


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
    ) -> None:
        """Freeze the policy.

        Args:
            policy: put into evaluation mode.
            catalog: of the policy.
            item_ids: ids of the logs, in the order of items.
            width: hypotheses of the beam; no list is longer.
            max_history: items of a history that the policy sees, the last ones.
            mask_history: leave the items of the whole history out of the list.
            precision: of the policy; the attribute of this name says what that is on this machine.
            reward: re-ranks the beam.
            reward_weight: `w`.
        """
        self.policy = policy.eval().frozen()
        self.catalog, self.item_ids = catalog, list(item_ids)
        self.width, self.max_history, self.mask_history = width, max_history, mask_history
        self.precision: Precision = precision_used(self.policy, precision)
        self.reward, self.reward_weight = reward, reward_weight
        self._hypotheses = width + (max_history if mask_history else 0)
        self._codes = catalog.codes.cpu().numpy()
        self._items = {str(name): item for item, name in enumerate(self.item_ids)}

    def known(self, history: Sequence[ItemId]) -> tuple[list[int], list[ItemId]]:
        """The items that ids name, and the ids that name none; `7` and `"7"` are the same id."""
        rows = [(name, self._items.get(str(name), -1)) for name in history]
        return [item for _, item in rows if item >= 0], [name for name, item in rows if item < 0]

    @torch.no_grad()
    def recommend(
        self, histories: Sequence[Sequence[int]], exclude: Sequence[Sequence[int]] | None = None
    ) -> list[Recommendations]:
        """The lists of `B` histories.

        Args:
            histories: items, oldest first, each with one at least.
            exclude: for each history the items that are left out of its list, beside those that masking leaves out.

        Returns:
            `B` lists of at most `width`; shorter where the catalogue or the search holds no more.
        """
        batch = self._batch(histories)
        with mixed_precision(self.policy, self.precision):
            context = self.policy.encode(batch)
        if exclude is not None and any(exclude):
            items, scores = self._search_without(context, batch, exclude)
        else:
            items, scores = self._search(context, batch)
        if self.reward is not None:
            rewards = ask_reward(self.reward, batch, items).nan_to_num(0.0)
            scores, order = (scores + self.reward_weight * rewards).sort(dim=1, descending=True, stable=True)
            items = items.gather(1, order)
        return [self._named(*row) for row in zip(items.tolist(), scores.tolist(), strict=True)]

    def _search(self, context: Context, batch: Histories) -> tuple[Tensor, Tensor]:
        """(B, W) items and scores, as evaluation finds them."""
        with mixed_precision(self.policy, self.precision):
            beams = beam_search(self.policy, context, self._hypotheses, trie=self.catalog.trie)
        if not self.mask_history:
            return self.catalog.lookup(beams.codes), beams.scores
        return without_history(self.policy, context, self.catalog, beams, batch, self.width, self.precision)

    def _search_without(
        self, context: Context, batch: Histories, exclude: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """(B, W) items and scores of a search that never enters what is excluded."""
        longest = max(map(len, exclude))
        rows = [[*items, *[-1] * (longest - len(items))] for items in exclude]
        closed = torch.tensor(rows, dtype=torch.int64, device=self.catalog.codes.device)
        if self.mask_history:
            closed = torch.cat([closed, batch.whole], dim=1)
        excluded = self.catalog.trie.excluding(closed)
        with mixed_precision(self.policy, self.precision):
            beams = beam_search(self.policy, context, self._hypotheses, trie=self.catalog.trie, excluded=excluded)
        return self.catalog.lookup(beams.codes)[:, : self.width], beams.scores[:, : self.width]

    def _batch(self, histories: Sequence[Sequence[int]]) -> Histories:
        offsets = np.cumsum([0, *map(len, histories)])
        ragged = Ragged(np.concatenate([np.asarray(history, np.int32) for history in histories]), offsets)
        rows = np.arange(len(histories))
        padded = pad(ragged, rows, self.max_history)
        device: torch.device = self.catalog.codes.device
        older = older_items(ragged, rows, self.max_history).to(device) if self.mask_history else None
        return Histories(padded.items.to(device), padded.lengths.to(device), older=older)

    def _named(self, items: list[int], scores: list[float]) -> Recommendations:
        count = sum(item >= 0 for item in items)  # places without an item are last
        found = items[:count]
        return Recommendations([self.item_ids[item] for item in found], scores[:count], self._codes[found].tolist())
