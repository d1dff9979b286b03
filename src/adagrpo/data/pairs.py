"""Counts of item pairs in training.

c(i, j) = |U_i ∩ U_j|                          U_i: users with item i, so c(i, i) = |U_i|
n(j, i) = times that i came after j in a sequence, directly or within some steps
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.data.sequences import basket_starts
from adagrpo.types import Ragged

_WHOLE = 2**25  # entries of a matrix of counts that is kept whole, 64 MiB where they fit 16 bits
_PRODUCTS = 2**24  # of one user's items that are summed at a time


def users_of_items(training: Ragged, num_items: int) -> sparse.csr_array:
    """Return (U, V) float32, 1 if a user has an item; columns ascend."""
    # copies: summing repeats moves what is there
    entries = (np.ones(len(training.values), np.float32), training.values.copy(), training.offsets.copy())
    user_items: sparse.csr_array = sparse.csr_array(entries, shape=(len(training), num_items))
    user_items.sum_duplicates()
    user_items.data[:] = 1.0  # repeats were summed
    return user_items


def common_users(training: Ragged, num_items: int) -> sparse.csr_array:
    """Return the (V, V) float32 counts `c`; columns ascend.

    >>> common_users(Ragged(np.array([0, 1, 1, 2, 0], np.int32), np.array([0, 3, 5])), 3).toarray().astype(int).tolist()
    [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    user_items = users_of_items(training, num_items)
    together: sparse.csr_array = (user_items.T @ user_items).tocsr()
    together.sort_indices()
    return together


def common_users_of(user_items: sparse.csr_array) -> Iterator[tuple[int, sparse.csr_array]]:
    """Yield blocks of `common_users`, in order: the first item and (n, V) counts; `user_items` of `users_of_items`."""
    users = user_items.T.tocsr()
    sizes = np.diff(user_items.indptr).astype(np.int64)
    bounds = np.append(0, sizes[users.indices].cumsum())[users.indptr]  # products up to each row
    first = 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _PRODUCTS, side="right")) - 1)
        counts = (users[first:last] @ user_items).tocsr()
        counts.sort_indices()
        yield first, counts
        first = last


def successions(training: Ragged, num_items: int, within: int = 1, *, shared: bool = True) -> sparse.csr_array:
    """Return the (V, V) float32 counts `n`, by earlier and later item; columns ascend.

    An item `d` steps later counts 1/d. Of known baskets each item of the next counts one, which the items before share
    (`shared`), or one for each.
    """
    if training.baskets is None:
        none = sparse.csr_array((0, num_items), dtype=np.float32)
        return sparse.csr_array(sparse.vstack([none, *successions_of(training, num_items, within)], format="csr"))
    users = np.repeat(np.arange(len(training)), training.lengths)
    begins, basket = np.unique(basket_starts(training), return_inverse=True)  # (total,) over all users
    of_user, ones = users[begins], np.ones(len(users), np.float32)
    user_items = sparse.csr_array((ones, (basket, training.values)), shape=(len(of_user), num_items))
    followed = np.flatnonzero(of_user[1:] == of_user[:-1])
    sizes = np.bincount(basket)[followed] if shared else np.ones(len(followed))
    earlier_items = sparse.diags_array((1.0 / sizes).astype(np.float32)) @ user_items[followed]
    between: sparse.csr_array = (earlier_items.T @ user_items[followed + 1]).tocsr().astype(np.float32)
    between.sort_indices()
    return between


def successions_of(training: Ragged, num_items: int, within: int) -> Iterator[sparse.csr_array]:
    """Yield blocks (n, V) of `successions` without baskets, in the order of the earlier items."""
    left = training.values_after(within)
    positions, starts = training.positions_by_value(num_items)
    first = 0
    while first < num_items:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _PRODUCTS // within, side="right")) - 1)
        here, of_item = positions[starts[first] : starts[last]].astype(np.int64), np.diff(starts[first : last + 1])
        rows = np.repeat(np.arange(last - first, dtype=np.int32), of_item)
        parts = []
        for steps in range(1, within + 1):
            near = left[here] >= steps
            later = training.values[here[near] + steps]
            parts.append((np.full(len(later), 1 / steps, np.float32), rows[near], later))
        values, earlier, later = (np.concatenate(column) for column in zip(*parts, strict=True))
        counts = sparse.coo_array((values, (earlier, later)), shape=(last - first, num_items)).tocsr()
        counts.sort_indices()
        yield counts
        first = last


class PairCounts(NamedTuple):
    """A count matrix: dense if small, else sorted keys."""

    keys: NDArray[np.int64]  # (nnz,) row · V + column, ascending; (0,) where the matrix is whole
    values: NDArray[np.number]  # (nnz,) or (V · V,)
    num_items: int  # V

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> PairCounts:
        """Convert a (V, V) matrix whose columns ascend."""
        size = matrix.shape[1]
        if size * size <= _WHOLE:
            small = not matrix.nnz or matrix.data.max() < 2**16
            return cls(np.empty(0, np.int64), matrix.astype(np.uint16 if small else np.float32).toarray().ravel(), size)
        rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
        return cls(rows * size + matrix.indices, matrix.data.astype(np.float32), size)

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return entries at rows and columns of one shape; 0 if absent.

        >>> PairCounts.of(sparse.csr_array(np.array([[0.0, 3.0], [5.0, 0.0]]))).at(np.array([0, 1]), np.array([1, 1]))
        array([3., 0.], dtype=float32)
        """
        wanted = rows * self.num_items + columns
        if len(self.values) == self.num_items**2:
            return self.values.take(wanted).astype(np.float32)
        if not len(self.keys):
            return np.zeros(wanted.shape, np.float32)
        index = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[index] == wanted, self.values[index], np.float32(0.0))
