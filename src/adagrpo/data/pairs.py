"""Counts of pairs of items in training: which users have both, and what followed what directly.

c(i, j) = |U_i ∩ U_j|                          U_i: users with item i, so c(i, i) = |U_i|
n(j, i) = number of times that i came directly after j in a sequence
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.types import Ragged

__all__ = ["PairCounts", "common_users", "successions"]


def common_users(training: Ragged, num_items: int) -> sparse.csr_array:
    """(V, V) float32 `c`, with its diagonal, columns ascending in each row.

    >>> common_users(Ragged(np.array([0, 1, 1, 2, 0], np.int32), np.array([0, 3, 5])), 3).toarray().astype(int).tolist()
    [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    users = np.repeat(np.arange(len(training)), training.lengths)
    entries = (np.ones(len(users), np.float32), (users, training.values))
    bought = sparse.coo_array(entries, shape=(len(training), num_items)).tocsr()
    bought.data[:] = 1.0  # repeats were summed
    together = (bought.T @ bought).tocsr()
    together.sort_indices()
    return together


def successions(training: Ragged, num_items: int) -> sparse.csr_array:
    """(V, V) float32 `n`: rows are the earlier item; columns ascending in each row.

    >>> successions(Ragged(np.array([0, 1, 0, 1, 2], np.int32), np.array([0, 4, 5])), 3).toarray().astype(int).tolist()
    [[0, 2, 0], [1, 0, 0], [0, 0, 0]]
    """
    inner = np.ones(len(training.values), dtype=np.bool_)
    inner[training.offsets[:-1][training.lengths > 0]] = False  # the first of each sequence comes after nothing
    later = np.flatnonzero(inner)
    entries = (np.ones(len(later), np.float32), (training.values[later - 1], training.values[later]))
    counts = sparse.coo_array(entries, shape=(num_items, num_items)).tocsr()
    counts.sort_indices()
    return counts


class PairCounts(NamedTuple):
    """A sparse matrix as a sorted list, to look up many single entries at once."""

    keys: NDArray[np.int64]  # (nnz,) row · V + column, ascending
    values: NDArray[np.float32]  # (nnz,)
    num_items: int  # V

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> PairCounts:
        """The entries of a (V, V) matrix whose columns ascend in each row."""
        rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
        keys = rows * matrix.shape[1] + matrix.indices
        return cls(keys, matrix.data.astype(np.float32), matrix.shape[1])

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """The entries at rows and columns of any one shape; 0 where there is none.

        >>> PairCounts.of(sparse.csr_array(np.array([[0.0, 3.0], [5.0, 0.0]]))).at(np.array([0, 1]), np.array([1, 1]))
        array([3., 0.], dtype=float32)
        """
        wanted = rows * self.num_items + columns
        if not len(self.keys):
            return np.zeros(wanted.shape, np.float32)
        place = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[place] == wanted, self.values[place], np.float32(0.0))
