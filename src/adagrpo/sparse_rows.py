"""Rows of sparse matrices: their largest entries, and weighted sums of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def largest_of_rows(counts: NDArray[np.int64], weights: NDArray[np.floating], limit: int) -> NDArray[np.bool_]:
    """Mark each row's `limit` largest positive weights, (N,); ties go to the earlier entry.

    Args:
        counts: (R,) entries of each row.
        weights: (N,), row by row.

    >>> largest_of_rows(np.array([3, 1]), np.array([0.5, 0.7, 0.5, 0.1]), 2)
    array([ True,  True, False,  True])
    """
    kept = weights > 0
    ends = counts.cumsum()
    for long in np.flatnonzero(counts > limit).tolist():
        part = slice(ends[long] - counts[long], ends[long])
        values = weights[part]
        least = np.partition(values, -limit)[-limit]
        largest = values > least
        largest[np.flatnonzero(values == least)[: limit - np.count_nonzero(largest)]] = True
        kept[part] &= largest
    return np.asarray(kept)


def with_largest(matrix: sparse.csr_array, limit: int) -> sparse.csr_array:
    """Return a matrix with each row's `limit` largest positive entries alone; ties go to the lower column.

    Args:
        matrix: (N, V); columns ascend.
    """
    kept = largest_of_rows(np.diff(matrix.indptr), matrix.data, limit)
    ends = np.append(0, kept.cumsum())[matrix.indptr]
    return sparse.csr_array((matrix.data[kept], matrix.indices[kept], ends), shape=matrix.shape)


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
