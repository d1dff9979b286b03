"""Rows of sparse matrices: their largest entries, and weighted sums of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def largest_of_rows(row: NDArray[np.int64], weights: NDArray[np.floating], limit: int) -> NDArray[np.bool_]:
    """Mark each row's `limit` largest positive weights, (N,); ties go to the earlier entry.

    >>> largest_of_rows(np.array([0, 0, 0, 1]), np.array([0.5, 0.7, 0.5, 0.1]), 2)
    array([ True,  True, False,  True])
    """
    # one number to sort by: the row, then the weight from the largest, whose bits as a float32 are in its order
    falling = np.uint32(2**32 - 1) - weights.astype(np.float32, copy=False).view(np.uint32)
    keys = (row << 32) | falling
    counts = np.bincount(row)
    starts = counts.cumsum() - counts
    least = np.sort(keys)[starts + np.minimum(counts, limit).clip(1) - 1][row]
    better, even = keys < least, keys == least
    room = limit - np.bincount(row, better, minlength=len(counts)).astype(np.int64)
    before = even.cumsum() - even
    even &= before - before[starts[row]] < room[row]
    return np.asarray((better | even) & (weights > 0))


def add_rows(
    total: NDArray[np.float32],  # (V,), changed
    matrix: sparse.csr_array,  # (N, V) float32
    columns: NDArray[np.int64],  # the matrix's indices, which are looked up faster in this type
    rows: Sequence[int],
    weights: NDArray[np.float32],  # of the rows
) -> None:
    """Add weighted rows of a matrix; for one user's few items quicker than a product of sparse matrices."""
    for row, weight in zip(rows, weights, strict=True):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        total[columns[part]] += weight * matrix.data[part]
