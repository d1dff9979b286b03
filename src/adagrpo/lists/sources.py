"""Sources of items other than the policy's beam: scores of the whole catalogue after a history.

    popularity   log((n_i + 1) / (n + V))    n_i training interactions of item i, n of all
    item-kNN     Σ_t γ^(T - t) s(x_t, i)     s(i, j) = |U_i ∩ U_j| / √(|U_i| |U_j|),  k nearest of each
    successors   Σ_t γ^(T - t) f(x_t, i)     f(j, i) = n(j, i) / √(1 + Σ_j n(j, i)),  k first of each
    ranker       h(x) · e_i + b_i            see `adagrpo.rewards.sequential`

`U_i` are the users with item i in training, n(j, i) counts how often it came one to `WITHIN` places after j there, one
over the places; `x_1 .. x_T` is the history. Source: Sarwar et al. (WWW 2001) for the cosine;
the decay towards older items is that of session-based kNN (Ludewig & Jannach 2018). The ranker, fitted by
cross-entropy, is SASRec.

A source lists its best items alone, and gives a fused list its candidates and one of its features, see
`adagrpo.lists.fusion`. Which sources there are: `adagrpo.lists.table`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from adagrpo.data.pairs import common_users_of, largest_of_rows, successions, users_of_items
from adagrpo.evaluation.predictions import batches
from adagrpo.networks.layers import linear_weights_in, mixed_precision, precision_used
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Cases, Histories, Ragged

DECAY = 0.7  # γ
NEIGHBOURS = 1000  # k
WITHIN = 3  # places
FLOOR = 1e-3  # added to a similarity before its logarithm: an item that no item of the history is near to has log 0.001
SUCCESSOR_FLOOR = 1e-2  # the same of a share of successors


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
    """Items that are near to those of the history, the latest weighing most: item-kNN, and successors."""

    def __init__(self, near: sparse.csr_array, floor: float = FLOOR) -> None:
        """Take the similarities.

        Args:
            near: (V, V) float32, of `similarities` or `successors`.
            floor: what is added before the logarithm.
        """
        self.near, self.floor, self._nearest = near, floor, near.indices.astype(np.int64)

    def scores(self, histories: Histories) -> Tensor:
        """(B, V) sums over the items of the history that a policy would see; -inf where no item is near."""
        items, lengths = histories.items.tolist(), histories.lengths.tolist()
        weights = (DECAY ** np.arange(max(lengths, default=1))).astype(np.float32)
        dense = np.zeros((len(lengths), self.near.shape[0]), np.float32)
        offsets, values = self.near.indptr, self.near.data
        for row, seen, length in zip(dense, items, lengths, strict=True):  # for one history quicker than a product
            for place, item in enumerate(seen[:length], 1):
                part = slice(offsets[item], offsets[item + 1])
                row[self._nearest[part]] += weights[length - place] * values[part]
        dense[dense == 0] = -np.inf
        return torch.from_numpy(dense).to(histories.items.device)

    def feature(self, scores: Tensor) -> Tensor:
        """log(s + floor), since similarities spread over powers of ten."""
        return (scores.clamp(min=0.0) + self.floor).log()


class RankerScores:
    """The sequential ranker over the whole catalogue."""

    def __init__(self, ranker: SequentialRanker) -> None:
        """Take a fitted ranker, which is put into evaluation mode; its weights are converted once, if at all."""
        in_bfloat16 = precision_used(ranker) == "bfloat16"
        self.ranker = linear_weights_in(ranker.eval(), torch.bfloat16) if in_bfloat16 else ranker.eval()
        tables = ranker.items.weight.detach(), ranker.bias.weight.detach().squeeze(-1)
        self._vectors, self._bias = (table.bfloat16() for table in tables) if in_bfloat16 else tables

    @torch.no_grad()
    def scores(self, histories: Histories) -> Tensor:
        """(B, V) logits."""
        with mixed_precision(self.ranker):
            states = self.ranker.last_states(histories)
            return functional.linear(states, self._vectors, self._bias).float()

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


def list_cases(
    source: CandidateSource,
    cases: Cases,
    *,
    batch_size: int = 256,
    width: int = 50,
    max_history: int | None = None,
    exclude_history: bool = False,
    eligible: Tensor | None = None,
) -> NDArray[np.int64]:
    """(N, W) best items of a source after the history of each of `N` cases; -1 where it lists no further item.

    Args:
        cases: `N` cases.
        batch_size: cases at a time.
        width: `W`.
        max_history: items of a history that the source sees, the last ones, as where it is served; None: all.
        exclude_history: leave out the items of a case's whole history.
        eligible: (V,) bool, what may be listed; None: everything.
    """
    longest, cpu = max_history or int(cases.histories.lengths.max(initial=1)), torch.device("cpu")
    items = np.full((len(cases), width), -1, dtype=np.int64)
    for rows, histories in batches(cases, batch_size, longest, cpu, whole=exclude_history):
        scores = source.scores(histories)
        closed = torch.zeros_like(scores, dtype=torch.bool)
        if eligible is not None:
            closed |= ~eligible.cpu()
        if exclude_history:
            whole = histories.whole
            closed[(whole >= 0).nonzero()[:, 0], whole[whole >= 0]] = True
        best = best_of(scores, closed, width)[0]
        items[rows, : best.shape[1]] = best.numpy()
    return items


def similarities(
    training: Ragged,
    num_items: int,
    neighbours: int = NEIGHBOURS,
    items: NDArray[np.int64] | None = None,  # (N,) ascending and distinct
) -> sparse.csr_array:
    """(V, V) float32 cosines of the sets of users, without the diagonal, the nearest of each row.

    Args:
        training: item sequences of the training split only.
        num_items: `V`.
        neighbours: `k` kept for each item.
        items: the rows that are wanted, the others stay empty; None: all.
    """
    items = np.arange(num_items) if items is None else items
    held = users_of_items(training, num_items)
    norms = np.sqrt(np.bincount(held.indices, minlength=num_items).astype(np.float32))
    parts = [(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int32))]
    for of_rows, together in common_users_of(held, items):
        rows = np.repeat(of_rows, np.diff(together.indptr))
        other = rows != together.indices
        rows, columns = rows[other], together.indices[other]
        cosines = together.data[other] / (norms[rows] * norms[columns])
        kept = largest_of_rows(rows, cosines, neighbours)  # ties: the lower item first
        parts.append((cosines[kept], rows[kept], columns[kept]))
    values, rows, columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sparse.coo_array((values, (rows, columns)), shape=(num_items, num_items)).tocsr()


def successors(training: Ragged, num_items: int, neighbours: int = NEIGHBOURS) -> sparse.csr_array:
    """(V, V) float32 `f`, the largest of each row; an item that follows itself is left out.

    Args:
        training: item sequences of the training split only.
        num_items: `V`.
        neighbours: `k` kept for each item.
    """
    counts = successions(training, num_items, WITHIN).tocoo()
    popular = np.sqrt(1 + np.bincount(counts.col, counts.data, num_items)).astype(np.float32)
    other = counts.row != counts.col
    rows, columns = counts.row[other].astype(np.int64), counts.col[other]
    shares = counts.data[other] / popular[columns]
    kept = largest_of_rows(rows, shares, neighbours)
    return sparse.coo_array((shares[kept], (rows[kept], columns[kept])), shape=counts.shape).tocsr()
