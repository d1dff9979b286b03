"""Items like those of the history by content: cosine of an item's vector and the decayed sum of the history's.

score(x, i) = cos(v_i, Σ_t γ^(T - t) v_{x_t}), γ as in item-kNN, with the vectors that Semantic IDs are quantised from.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from adagrpo.lists.own import past_of
from adagrpo.lists.sources import DECAY
from adagrpo.types import Histories


class ContentSimilarity:
    """Similarity of items' vectors."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:  # (V, W)
        self._vectors = functional.normalize(torch.from_numpy(vectors), dim=1)

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) cosines."""
        past, vectors = past_of(histories), self._vectors.to(histories.items.device)
        there = past.items >= 0
        weights = torch.where(there, DECAY ** past.baskets.float(), 0.0)
        profile = (weights.unsqueeze(-1) * vectors[past.items.clamp(min=0)]).sum(dim=1)
        return functional.normalize(profile, dim=1) @ vectors.T

    def feature(self, scores: Tensor) -> Tensor:
        """Return the scores unchanged."""
        return scores
