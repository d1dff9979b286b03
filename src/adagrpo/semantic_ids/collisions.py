"""Resolve collisions, so that a code sequence names at most one item.

Either append a level that numbers the items of a sequence (TIGER, Rajput et al., NeurIPS 2023), or move items to free
codes of the last level (LC-Rec, Zheng et al., ICDE 2024, but closest pairs first instead of a transport problem).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adagrpo.errors import UserError
from adagrpo.semantic_ids.quantization import Quantization, assign_within

_NUMBERS = 2**20  # differences between items and codes in memory at a time


def sequence_groups(codes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # (V, L)
    """Group items by code sequence.

    Returns:
        (V,) index of each item's sequence in lexicographic order, and (N,) counts.

    >>> groups, counts = sequence_groups(np.array([[5, 1], [0, 2], [5, 1]]))
    >>> groups.tolist(), counts.tolist()
    ([1, 0, 1], [1, 2])
    """
    group = np.zeros(len(codes), dtype=np.int64)
    for column in codes.T.astype(np.int64) if len(codes) else ():
        above = column - column.min()
        # the rank so far and the next code in one number, below V times the codes of a level
        group = np.unique(group * (int(above.max()) + 1) + above, return_inverse=True)[1]
    return group, np.bincount(group)


def resolve_collisions(codes: NDArray[np.integer[Any]]) -> NDArray[np.int64]:  # (V, L)
    """Append a level that numbers the items of each sequence `0 .. c-1` in item order: (V, L + 1) distinct codes.

    >>> resolve_collisions(np.array([[5, 1], [0, 2], [5, 1]])).tolist()
    [[5, 1, 0], [0, 2, 0], [5, 1, 1]]
    """
    if codes.ndim != 2:
        raise ValueError(f"codes has shape {codes.shape}, expected (V, L)")
    group, counts = sequence_groups(codes)
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - starts[group[order]]
    return np.column_stack([codes.astype(np.int64), rank])


def numbers_items(codes: NDArray[np.int64]) -> bool:  # (V, L)
    """Return whether the last level is one that `resolve_collisions` appended.

    >>> numbers_items(np.array([[5, 0], [0, 0], [5, 1]])), numbers_items(np.array([[5, 0], [0, 2], [5, 1]]))
    (True, False)
    """
    return codes.shape[1] > 1 and np.array_equal(resolve_collisions(codes[:, :-1]), codes)


def move_to_free_codes(quantization: Quantization, most: int = 0) -> NDArray[np.int64]:
    """Move items that collide to free codes of the last level: (V, L) int64 distinct rows.

    UserError if more items share a prefix than the last level has codes.

    The item nearest to its code stays; the others of a prefix take its free codes, closest pair first, by squared
    distance of the last residual. Ties go to the lower item, then the lower code. If a prefix needs more codes than the
    level has, zero vectors are added, up to `most` codes.
    """
    codes = quantization.codes.copy()
    levels, size = codes.shape[1], len(quantization.codebooks[-1])
    left = quantization.residual(levels - 1).astype(np.float64)
    vectors = quantization.codebooks[-1].astype(np.float64)
    prefix, counts = sequence_groups(codes[:, :-1])
    if (added := min(int(counts.max(initial=0)), most) - size) > 0:
        vectors, size = np.pad(vectors, ((0, added), (0, 0))), size + added
    if counts.max(initial=0) > size:
        raise UserError(
            f"tokenizer.collisions: {counts.max()} items share their first {levels - 1} codes and level {levels} has "
            f"{size}; take more codes or levels, or collisions 'level', which alone tells items of equal vectors apart"
        )
    own = np.square(left - vectors[codes[:, -1]]).sum(axis=1)
    order = np.lexsort((own, codes[:, -1], prefix))  # stable: of equal distances the lower item is first
    sequence = np.column_stack([prefix, codes[:, -1]])[order]
    repeats = np.append(False, (sequence[1:] == sequence[:-1]).all(axis=1))
    ends = np.cumsum(counts)
    for shared in np.unique(prefix[order[repeats]]):
        of_prefix = slice(ends[shared] - counts[shared], ends[shared])
        moving = np.sort(order[of_prefix][repeats[of_prefix]])
        free = np.setdiff1d(np.arange(size), codes[order[of_prefix], -1])
        step = max(1, _NUMBERS // max(1, len(free) * vectors.shape[1]))
        gaps = [
            np.square(left[moving[first : first + step], None] - vectors[free]).sum(axis=2)
            for first in range(0, len(moving), step)
        ]
        codes[moving, -1] = free[assign_within(np.concatenate(gaps), np.ones(len(free), dtype=np.int64))]
    return codes
