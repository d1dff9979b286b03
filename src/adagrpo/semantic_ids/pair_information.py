"""Pointwise mutual information of items that occur near each other, computed in blocks of items.

    p_ij = max(0, log(n_ij n / (n_i n_j)))     n_ij pairs of items within a window, n_i = Σ_j n_ij, n = Σ_i n_i

Beyond `PAIRS` pairs an item keeps the `PAIRS / V` neighbours of largest `n_ij p_ij` (local mutual information, Evert
2005).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from adagrpo.data.pairs import largest_of_rows
from adagrpo.types import Ragged

PAIRS = 2**27  # entries that are kept, about; 1.1 GB of them
BLOCK = 2**25  # pairs that are counted at a time
EXACT_ROWS = 2**17  # of a matrix whose decomposition may be exact, for which the values are float64
_POSITIONS = 2**22  # of the log, processed at a time

Ints = NDArray[np.int64]


def pair_information(
    training: Ragged, num_items: int, window: int, *, most: int = PAIRS, block: int = BLOCK
) -> sparse.csr_array:
    """Return the (V, V) information of pairs, symmetric if nothing was cut; columns ascend in each row.

    Args:
        window: maximum distance of two items, at least 1.
        most: number of pairs above which neighbours are cut; `block` of them are counted at a time.
    """
    reach = min(window, int(training.lengths.max(initial=0)))
    left = np.full(len(training.values), reach, np.min_scalar_type(reach))  # items after each in its sequence
    for distance in range(reach):
        left[training.offsets[1:][training.lengths > distance] - 1 - distance] = distance
    totals = np.zeros(num_items, np.int64)  # n_i
    for pair in _pairs(training.values, left):
        for side in pair:
            totals += np.bincount(side, minlength=num_items)
    total = int(totals.sum())
    limit = None if total <= most else max(1, most // num_items)
    kind = np.float64 if limit is None and num_items <= EXACT_ROWS else np.float32
    ends = np.searchsorted(totals.cumsum(), np.arange(block, total + block, block), side="right")
    bounds = np.unique([0, *np.minimum(ends, num_items), num_items])
    counts, columns, values = [np.zeros(1, np.int64)], [np.empty(0, np.int32)], [np.empty(0, kind)]
    positions = np.argsort(training.values, kind="stable")  # in the log, by item
    training.release()
    positions = positions.astype(np.int32) if len(positions) < 2**31 else positions  # half the memory
    starts = np.append(0, training.counts(num_items).cumsum())
    for first, last in pairwise(bounds.tolist()):
        keys = _keys(training.values, left, positions[starts[first] : starts[last]], num_items)
        training.release()
        row, column, times = _counted(keys, num_items)
        chance = totals[row].astype(np.float64) * totals[column].astype(np.float64)
        information = np.log(times * float(total) / chance)
        kept = information > 0
        if limit is not None:
            kept = largest_of_rows(row - first, np.where(kept, times * information, 0.0), limit)
        counts.append(np.bincount(row[kept] - first, minlength=last - first))
        columns.append(column[kept].astype(np.int32))
        values.append(information[kept].astype(kind))
    del positions
    entries = np.concatenate(values)
    values.clear()
    where = (np.concatenate(columns), np.concatenate(counts).cumsum())
    columns.clear()
    return sparse.csr_array((entries, *where), shape=(num_items, num_items))


def _pairs(
    values: NDArray[np.int32], left: NDArray[np.unsignedinteger]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    for start in range(0, len(values), _POSITIONS):
        here = slice(start, start + _POSITIONS)
        for distance in range(1, int(left[here].max()) + 1):
            positions = np.flatnonzero(left[here] >= distance) + start
            one, other = values[positions], values[positions + distance]
            differ = one != other
            yield one[differ], other[differ]


def _keys(
    values: NDArray[np.int32],  # (total,)
    left: NDArray[np.unsignedinteger],  # (total,)
    positions: NDArray[np.integer],  # (P,) of the log
    num_items: int,
) -> Ints:
    """Return (N,) unsorted keys item · V + neighbour of pairs."""
    parts, farthest = [np.empty(0, np.int64)], int(left.max(initial=0))

    def add(items: NDArray[np.int32], neighbours: NDArray[np.int32]) -> None:
        differ = items != neighbours
        parts.append(items[differ].astype(np.int64) * num_items + neighbours[differ])

    for start in range(0, len(positions), _POSITIONS):
        here = positions[start : start + _POSITIONS].astype(np.int64)
        items, following = values[here], left[here]
        for distance in range(1, farthest + 1):
            after = following >= distance
            add(items[after], values[here[after] + distance])
            before = np.maximum(here - distance, 0)
            reached = (here >= distance) & (left[before] >= distance)
            add(items[reached], values[before[reached]])
    return np.concatenate(parts)


def _counted(keys: Ints, num_items: int) -> tuple[Ints, Ints, Ints]:
    """Return (N',) ascending rows and columns, and counts; sorts `keys` in place."""
    keys.sort()
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
    distinct = keys[starts]
    return distinct // num_items, distinct % num_items, np.diff(np.append(starts, len(keys)))
