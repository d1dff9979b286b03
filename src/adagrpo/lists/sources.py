"""Sources of items other than the policy's beam: scores of the whole catalogue after a history.

    popularity   log((n_i + 1) / (n + V))                        n_i training interactions of item i, n of all
    item-kNN     Σ_t γ^(T - t) s(x_t, i)                         see `adagrpo.evaluation.baselines`
    ranker       h(x) · e_i + b_i                                see `adagrpo.rewards.sequential`

A source lists its best items alone (`item_knn` is a list that can be served), and gives a fused list its candidates and
one of its features, see `adagrpo.lists.fusion`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from adagrpo.networks.layers import mixed_precision
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Histories

__all__ = ["CandidateSource", "NearestItems", "Popularity", "RankerScores", "best_of"]

DECAY = 0.7  # γ, as in `adagrpo.evaluation.baselines.item_knn`
FLOOR = 1e-3  # added to a similarity before its logarithm: an item that no item of the history is near to has log 0.001


class CandidateSource(Protocol):
    """Scores of the whole catalogue after a history."""

    def scores(self, histories: Histories) -> Tensor:
        """(B, V) float32 scores after `B` histories, -inf for what the source would never list."""
        ...

    def feature(self, scores: Tensor) -> Tensor:
        """(B, N) scores of some items on the scale that a linear weight is given for; finite."""
        ...


class Popularity:
    """Training interactions of each item, whatever the history."""

    def __init__(self, counts: NDArray[np.int64]) -> None:
        """Take the counts.

        Args:
            counts: (V,) training interactions.
        """
        shares = np.log((counts + 1) / (counts.sum() + len(counts)))
        self._scores = torch.from_numpy(shares.astype(np.float32))

    def scores(self, histories: Histories) -> Tensor:
        """(B, V) the same for every history."""
        return self._scores.to(histories.items.device).expand(len(histories.lengths), -1)

    def feature(self, scores: Tensor) -> Tensor:
        """The logarithm of the share, as it is."""
        return scores


class NearestItems:
    """Item-kNN: items that users have together with those of the history, the latest weighing most."""

    def __init__(self, near: sparse.csr_array) -> None:
        """Take the similarities.

        Args:
            near: (V, V) float32, of `adagrpo.evaluation.baselines.similarities`.
        """
        self.near = near

    def scores(self, histories: Histories) -> Tensor:
        """(B, V) sums over the items of the history that a policy would see; -inf where no item is near."""
        items, lengths = histories.items.cpu().numpy(), histories.lengths.cpu().numpy()
        offsets = np.append(0, lengths.cumsum())
        age = np.repeat(offsets[1:], lengths) - 1 - np.arange(offsets[-1])
        real = np.arange(items.shape[1]) < lengths[:, None]
        seen = ((DECAY**age).astype(np.float32), items[real], offsets)
        weighted = sparse.csr_array(seen, shape=(len(lengths), self.near.shape[0]))
        dense: NDArray[np.float32] = (weighted @ self.near).toarray()
        dense[dense == 0] = -np.inf
        return torch.from_numpy(dense).to(histories.items.device)

    def feature(self, scores: Tensor) -> Tensor:
        """log(s + 0.001), since similarities spread over powers of ten."""
        return (scores.clamp(min=0.0) + FLOOR).log()


class RankerScores:
    """The sequential ranker over the whole catalogue."""

    def __init__(self, ranker: SequentialRanker) -> None:
        """Take a fitted ranker, which is put into evaluation mode."""
        self.ranker = ranker.eval()

    @torch.no_grad()
    def scores(self, histories: Histories) -> Tensor:
        """(B, V) logits."""
        with mixed_precision(self.ranker):
            return self.ranker.catalogue_scores(self.ranker.last_states(histories))

    def feature(self, scores: Tensor) -> Tensor:
        """The logit, as it is: what is the same for all items of a list orders none of them."""
        return scores


def best_of(
    scores: Tensor,  # (B, V)
    closed: Tensor,  # (B, V) bool
    width: int,
) -> tuple[Tensor, Tensor]:  # (B, W) each
    """The best items by a source's scores, and the scores; -1 and -inf behind the last one.

    Args:
        scores: not changed.
        closed: True for what may not be listed.
        width: `W`, of which no more than `V` are given.

    Example:
        >>> best_of(torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([[False, True, False]]), 3)[0].tolist()
        [[2, 0, -1]]
    """
    best = scores.masked_fill(closed, -torch.inf).topk(min(width, scores.shape[1]))
    return best.indices.masked_fill(best.values == -torch.inf, -1), best.values
