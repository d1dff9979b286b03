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
from adagrpo.lists.sources import DECAY, CandidateSource
from adagrpo.types import Histories


class ContentSimilarity(CandidateSource):
    """Similarity of items' vectors."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:  # (V, W)
        self._vectors = functional.normalize(torch.from_numpy(vectors), dim=1)

    def scores(self, histories: Histories) -> Tensor:
        """Return (B, V) cosines."""
        return self._profiles(histories) @ self._vectors.to(histories.items.device).T

    def scores_at(self, histories: Histories, items: Tensor) -> Tensor:
        """Return (B, N) cosines, without reading other items' vectors."""
        vectors = self._vectors.to(items.device)[items.clamp(min=0)]
        return (vectors @ self._profiles(histories).unsqueeze(-1)).squeeze(-1)

    def _profiles(self, histories: Histories) -> Tensor:  # (B, W)
        past, vectors = past_of(histories), self._vectors.to(histories.items.device)
        weights = torch.where(past.items >= 0, DECAY ** past.baskets.float(), 0.0)
        profile = (weights.unsqueeze(-1) * vectors[past.items.clamp(min=0)]).sum(dim=1)
        return functional.normalize(profile, dim=1)
