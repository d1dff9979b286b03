"""The protocol of a reward: a score for each (history, item), higher is better, on any scale."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from adagrpo.types import Histories


class Reward(Protocol):
    """A reward model, typically a production ranker."""

    def score(self, histories: Histories, items: Tensor) -> Tensor:
        """Score items (B, N) int64, -1 for none, for `B` histories.

        Returns:
            (B, N) float32; the value at -1 is unspecified and must not be read.
        """
        ...
