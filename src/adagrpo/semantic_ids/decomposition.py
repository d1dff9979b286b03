"""Truncated singular value decomposition of a sparse matrix: exact, or a randomised sketch if it is large.

    Y_0 = A Ω,  Q_i = orth(Y_i),  Y_{i+1} = A (A^T Q_i)        Ω Gaussian, W + 16 columns; A ≈ Q Q^T A after two rounds

Source: Halko, Martinsson & Tropp, SIAM Review 2011, algorithms 4.4 and 5.1. The exact solver is ARPACK's, or LAPACK's
for all values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import qr
from scipy.sparse.linalg import svds

EXACT_ROWS, EXACT_ENTRIES = 2**17, 2**25
EXTRA, ROUNDS = 16, 2
# Relative to the largest: singular values below this are rounding, of float64 and of float32.
_FLOOR, _FLOOR_SKETCHED = 1e-8, 1e-5


def sketched(rows: int, entries: int) -> bool:
    """Return whether a matrix is too large for the exact solver."""
    return rows > EXACT_ROWS or entries > EXACT_ENTRIES


def truncated_svd(
    matrix: sparse.csr_array,  # (rows, columns)
    width: int,
) -> tuple[NDArray[np.floating], NDArray[np.float64]]:
    """Return left singular vectors (rows, W') and values (W',), largest first, without those at rounding level.

    Deterministic; the vectors are float32 if sketched.

    Args:
        matrix: not empty.
        width: maximum number of values.
    """
    smaller = min(matrix.shape)
    if width >= smaller and smaller * max(matrix.shape) <= EXACT_ENTRIES:  # the iterative solver cannot find them all
        left, values, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
    elif width < smaller and not sketched(matrix.shape[0], matrix.nnz):
        start = np.random.default_rng(0).standard_normal(smaller)
        left, values, _ = svds(matrix, k=width, v0=start, return_singular_vectors="u")
        order = np.argsort(-values, kind="stable")
        left, values = left[:, order].astype(np.float64), values[order].astype(np.float64)
    else:
        return sketched_svd(matrix, width)
    kept = values > _FLOOR * values[0]
    return left[:, kept], values[kept]


def sketched_svd(
    matrix: sparse.csr_array,  # (rows, columns)
    width: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Compute `truncated_svd` by the sketch."""
    matrix = matrix.astype(np.float32, copy=False)
    wide = min(width + EXTRA, *matrix.shape)
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], wide), dtype=np.float32)
    for _ in range(ROUNDS):
        basis = matrix.T @ _orthonormal(matrix @ basis)
    basis = _orthonormal(matrix @ basis)
    # Q^T A is small on one side alone: its triangular factor has its singular values
    (small,) = qr((matrix.T @ basis).astype(np.float64, copy=False), mode="r", overwrite_a=True, check_finite=False)
    turn, values, _ = np.linalg.svd(small.T, full_matrices=False)
    values = values[:width]
    kept = values > _FLOOR_SKETCHED * values[0]
    return basis @ turn[:, :width][:, kept].astype(np.float32), values[kept]


def _orthonormal(block: NDArray[np.float32]) -> NDArray[np.float32]:
    basis: NDArray[np.float32] = qr(block, mode="economic", overwrite_a=True, check_finite=False)[0]
    return basis
