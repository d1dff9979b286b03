"""A list that a shop has already: what each user gets is looked up by the user's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from adagrpo.lists.sources import CandidateSource
from adagrpo.types import Histories


class StoredLists(CandidateSource):
    """Items by user, best first; a user without a list, or an unknown one, gets none."""

    def __init__(self, lists: Mapping[str, Sequence[int]], num_items: int) -> None:
        """`lists` are by the text of a user's id."""
        self.lists, self.num_items = lists, num_items

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) scores: 0 for the first item of the list, -1 for the second; -inf for others."""
        users = [None] * len(histories.lengths) if histories.asking is None else histories.asking.users
        scores = torch.full((len(users), self.num_items), -torch.inf)
        for row, user in enumerate(users):
            items = torch.tensor(self.lists.get(str(user), ()), dtype=torch.int64)
            scores[row, items] = -torch.arange(len(items), dtype=torch.float32)
        return scores.to(histories.items.device)
