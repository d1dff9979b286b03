"""A user's own items: how often, how lately and how regularly they were had.

    own         number of baskets with the item; ties: the more recent, then the more popular; then items never had
    own_recent  Σ_b γ^b over the baskets with it, b baskets ago
    own_since   1 / (1 + d / 30), d days since the last of them
    own_due     exp(-|log((d + 1) / (g + 1))|), g the mean days between them: 1 when as long has passed as usual

Sources: personal frequency completed by popularity (Li et al. 2023), decay over baskets (Hu et al. 2020). Without known
baskets each interaction is its own; without times the last two are 0.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.lists.sources import CandidateSource
from adagrpo.types import Histories, Past

DECAY = 0.8  # γ
MONTH = 30.0  # days
TIE = 1e-6  # the weight of popularity among items of equal count and age, below that of a basket in seven hundred
FLOOR = 1e-2  # added to `own_recent` before its logarithm


class OwnItems(CandidateSource):
    """How often each item is in the user's whole history."""

    def __init__(self, popularity: NDArray[np.int64]) -> None:  # (V,) training interactions
        order = np.empty(len(popularity))
        order[np.argsort(popularity, kind="stable")] = np.arange(len(popularity))
        self._popular = torch.from_numpy(order / max(1, len(popularity)))  # (V,) in [0, 1), no two alike

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) float64 counts plus fractions for ties, no two alike; negative for items never had."""
        past, size = past_of(histories), len(self._popular)
        counts = _summed(past, torch.ones_like(past.days), size).double()
        newest = _greatest(past, 0.5 / (1.0 + past.baskets), size).double()
        popular = self._popular.to(counts.device)
        return torch.where(counts > 0, counts + newest + TIE * popular, popular - 1.0)

    def feature(self, scores: Tensor) -> Tensor:
        """Return log(1 + count)."""
        return scores.clamp(min=0.0).floor().log1p().float()


class OwnRecent(CandidateSource):
    """How often and how recently, in baskets."""

    floor: float | None = FLOOR

    def __init__(self, num_items: int) -> None:
        self.num_items = num_items

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) decayed counts; -inf for items never had."""
        past = past_of(histories)
        found = _summed(past, DECAY**past.baskets, self.num_items)
        return found.masked_fill(found == 0, -torch.inf)


class OwnSince(OwnRecent):
    """How long ago, in days."""

    floor = None

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) values in (0, 1]; 0 for items never had, or at unknown times."""
        past = past_of(histories)
        return _greatest(past, (1.0 / (1.0 + past.days.clamp(min=0.0) / MONTH)).nan_to_num(0.0), self.num_items)


class OwnDue(OwnSince):
    """Whether as much time has passed as usual."""

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) values in (0, 1]; 0 for items had once or never, or at unknown times."""
        past = past_of(histories)
        counts = _summed(past, (~past.days.isnan()).float(), self.num_items)  # 0 at an unknown time
        days = past.days.nan_to_num(0.0).clamp(min=0.0)
        longest = 1.0 + days.amax(dim=1, keepdim=True)  # of each user, so that no list depends on the others'
        since = longest - _greatest(past, longest - days, self.num_items)
        first = _greatest(past, days, self.num_items)
        gap = (first - since) / (counts - 1.0).clamp(min=1.0)
        due = (-((since + 1.0) / (gap + 1.0)).log().abs()).exp()
        return due.masked_fill(counts < 2, 0.0)


def past_of(histories: Histories) -> Past:
    """Return the whole past, or what the policy sees, each item a basket at an unknown time."""
    if histories.past is not None:
        return histories.past
    there = torch.arange(histories.items.shape[1], device=histories.items.device) < histories.lengths[:, None]
    ago = histories.lengths[:, None] - 1 - torch.arange(histories.items.shape[1], device=histories.items.device)
    items = histories.items.masked_fill(~there, -1)
    return Past(items, ago.clamp(min=0), torch.full(items.shape, torch.nan, device=items.device))


def _summed(past: Past, values: Tensor, num_items: int) -> Tensor:  # (B, V), by item
    whole = torch.zeros(len(past.items), num_items + 1, device=past.items.device)
    return whole.scatter_add_(1, past.items.where(past.items >= 0, num_items), values.float())[:, :-1]


def _greatest(past: Past, values: Tensor, num_items: int) -> Tensor:  # (B, V), by item, at least 0
    whole = torch.zeros(len(past.items), num_items + 1, device=past.items.device)
    return whole.scatter_reduce_(1, past.items.where(past.items >= 0, num_items), values.float(), "amax")[:, :-1]
