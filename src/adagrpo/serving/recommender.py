"""What a served policy answers: beam search held to the catalogue, in the ids of the logs.

The list of a history is the one that evaluation measures: the same beam width, masking and precision, and where a
reward is given the order of `log-probability + w · reward` that `rerank` stands for in a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from adagrpo.data.sequences import older_items, pad
from adagrpo.decoding import beam_search
from adagrpo.evaluation.predictions import without_history
from adagrpo.networks.layers import Precision, mixed_precision, precision_used
from adagrpo.policies.policy import Policy
from adagrpo.rewards.protocol import Reward
from adagrpo.rewards.scoring import ask_reward
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.semantic_ids.trie import Excluded
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
        catalog_version: str | None = None,
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
            catalog_version: what the catalogue is called; the attribute of this name is for answers.
        """
        self.policy = policy.eval().frozen()
        self.catalog, self.item_ids = catalog, list(item_ids)
        self.width, self.max_history, self.mask_history = width, max_history, mask_history
        self.precision: Precision = precision_used(self.policy, precision)
        self.reward, self.reward_weight = reward, reward_weight
        self.catalog_version = catalog_version
        self._codes = catalog.codes.cpu().numpy()
        self._items = {str(name): item for item, name in enumerate(self.item_ids)}

    def known(self, history: Sequence[ItemId]) -> tuple[list[int], list[ItemId]]:
        """The items that ids name, and the ids that name none; `7` and `"7"` are the same id."""
        rows = [(name, self._items.get(str(name), -1)) for name in history]
        return [item for _, item in rows if item >= 0], [name for name, item in rows if item < 0]

    def recommend(
        self,
        histories: Sequence[Sequence[int]],
        exclude: Sequence[bool] | None = None,
        without: Sequence[Sequence[int]] | None = None,
    ) -> list[Recommendations]:
        """The lists of `B` histories.

        Args:
            histories: items, oldest first, each with one at least.
            exclude: of each history, whether its items are left out of its list; None: `mask_history` of all.
            without: for each history other items that are left out of its list.

        Returns:
            `B` lists of at most `width`; shorter where the catalogue or the search holds no more.
        """
        excludes = [self.mask_history] * len(histories) if exclude is None else list(exclude)
        answers: dict[int, Recommendations] = {}
        for masked in {*excludes}:
            rows = [row for row, this in enumerate(excludes) if this == masked]
            closed = [] if without is None else [without[row] for row in rows]
            answers |= zip(rows, self._search([histories[row] for row in rows], masked, closed), strict=True)
        return [answers[row] for row in range(len(histories))]

    @torch.no_grad()
    def _search(
        self, histories: Sequence[Sequence[int]], masked: bool, closed: Sequence[Sequence[int]]
    ) -> list[Recommendations]:
        batch = self._batch(histories, masked)
        held = self.width + (self.max_history if masked else 0)
        excluded = self._excluded(batch, masked, closed) if any(closed) else None
        with mixed_precision(self.policy, self.precision):
            context = self.policy.encode(batch)
            beams = beam_search(self.policy, context, held, trie=self.catalog.trie, excluded=excluded)
        if masked and excluded is None:
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

    def _excluded(self, batch: Histories, masked: bool, closed: Sequence[Sequence[int]]) -> Excluded:
        """What the searches of a batch never enter: `closed`, and with `masked` the histories."""
        longest = max(map(len, closed))
        rows = [[*items, *[-1] * (longest - len(items))] for items in closed]
        items = torch.tensor(rows, dtype=torch.int64, device=self.catalog.codes.device)
        return self.catalog.trie.excluding(torch.cat([items, batch.whole], dim=1) if masked else items)

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
