"""Baselines that need no training, in the same harness as the policies: popularity and item-kNN.

    popularity   score(i) = n_i
    item-kNN     score(x, i) = Σ_t γ^(T - t) s(x_t, i),   s(i, j) = |U_i ∩ U_j| / √(|U_i| |U_j|),  k nearest of each

`U_i` are the users with item i in training, `x_1 .. x_T` the history. Source: Sarwar et al. (WWW 2001) for the cosine;
the decay towards older items is that of session-based kNN (Ludewig & Jannach 2018). The sequential ranker, fitted by
cross-entropy, is the third baseline of the tables: that is SASRec, see `adagrpo.rewards.sequential`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from adagrpo.data.pairs import common_users_of, largest_of_rows, users_of_items
from adagrpo.types import Cases, Ragged

__all__ = ["item_knn", "popularity", "similarities"]

NEIGHBOURS = 1000  # k
# scores of a block of cases are dense: this many numbers at a time
_BLOCK = 2**24


def popularity(
    training: Ragged,
    num_items: int,
    cases: Cases,
    *,
    width: int = 50,
    exclude_history: bool = False,
    eligible: Tensor | None = None,
) -> NDArray[np.int64]:
    """(N, W) most popular items for each of `N` cases; -1 where there are none left.

    Args:
        training: item sequences of the training split only.
        num_items: `V`.
        cases: `N` cases.
        width: `W`.
        exclude_history: leave out the items of a case's history.
        eligible: (V,) bool, what may be listed; None: everything.
    """
    counts = training.counts(num_items).astype(np.float32)
    return _rank(
        cases,
        num_items,
        width,
        exclude_history,
        eligible,
        1.0,
        lambda histories: np.tile(counts, (histories.shape[0], 1)),
    )


def item_knn(
    training: Ragged,
    num_items: int,
    cases: Cases,
    *,
    width: int = 50,
    exclude_history: bool = False,
    eligible: Tensor | None = None,
    neighbours: int = NEIGHBOURS,
    decay: float = 0.7,
) -> NDArray[np.int64]:
    """(N, W) items nearest to the history of each of `N` cases; -1 where no further item is near.

    Args:
        training: item sequences of the training split only.
        num_items: `V`.
        cases: `N` cases.
        width: `W`.
        exclude_history: leave out the items of a case's history.
        eligible: (V,) bool, what may be listed; None: everything.
        neighbours: `k` kept for each item, itself not counted.
        decay: `γ`, in (0, 1].
    """
    near = similarities(training, num_items, neighbours, np.unique(cases.histories.values).astype(np.int64))

    def scores(histories: sparse.csr_array) -> NDArray[np.float32]:
        dense: NDArray[np.float32] = (histories @ near).toarray()
        dense[dense == 0] = -np.inf
        return dense

    return _rank(cases, num_items, width, exclude_history, eligible, decay, scores)


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


def _rank(
    cases: Cases,
    num_items: int,
    width: int,
    exclude_history: bool,
    eligible: Tensor | None,
    decay: float,
    scores: Callable[[sparse.csr_array], NDArray[np.float32]],
) -> NDArray[np.int64]:  # (N, W)
    """The best items of each case by the scores (N', V) of its weighted history (N', V); never one of score -inf."""
    ranked = np.full((len(cases), width), -1, dtype=np.int64)
    step, wide = max(1, _BLOCK // num_items), min(width, num_items)
    for first in range(0, len(cases), step):
        offsets = cases.histories.offsets[first : first + step + 1]
        items, lengths = cases.histories.values[offsets[0] : offsets[-1]], np.diff(offsets)
        age = np.repeat(offsets[1:], lengths) - 1 - np.arange(offsets[0], offsets[-1])
        weights = (decay**age).astype(np.float32)
        histories = sparse.csr_array((weights, items, offsets - offsets[0]), shape=(len(lengths), num_items))
        values = scores(histories)
        if exclude_history:
            values[np.repeat(np.arange(len(lengths)), lengths), items] = -np.inf
        if eligible is not None:
            values[:, ~eligible.cpu().numpy()] = -np.inf
        best = torch.from_numpy(values).topk(wide)
        ranked[first : first + step, :wide] = best.indices.masked_fill(best.values == -torch.inf, -1).numpy()
    return ranked
