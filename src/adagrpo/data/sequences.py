"""Padded batches of sequences of similar length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.types import Histories, Ragged


def pad(ragged: Ragged, rows: NDArray[np.integer], max_length: int) -> Histories:
    """Return the last `max_length` items of rows, right-padded with 0.

    >>> pad(Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4])), np.array([1, 0]), 2).items
    tensor([[8, 0],
            [6, 7]])
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    ends = ragged.offsets[np.asarray(rows) + 1]
    lengths = np.minimum(ends - ragged.offsets[rows], max_length)
    if len(lengths) and lengths.min() < 1:
        raise ValueError("rows holds an empty sequence; a history has at least one item")
    real = np.arange(lengths.max(initial=1)) < lengths[:, None]
    items = np.zeros(real.shape, np.int64)
    items[real] = ragged.parts(ends - lengths, lengths)
    return Histories(torch.from_numpy(items), torch.from_numpy(lengths.astype(np.int64)))


def older_items(ragged: Ragged, rows: NDArray[np.integer], max_length: int | NDArray[np.integer]) -> Tensor:
    """Return (B, O) int64 items that `pad` leaves out, oldest first, padded with -1."""
    starts = ragged.offsets[np.asarray(rows)]
    lengths = np.maximum(ragged.offsets[np.asarray(rows) + 1] - starts - max_length, 0)
    real = np.arange(lengths.max(initial=0)) < lengths[:, None]
    items = np.full(real.shape, -1, np.int64)
    items[real] = ragged.parts(starts, lengths)
    return torch.from_numpy(items)


def basket_starts(ragged: Ragged) -> NDArray[np.int64]:  # (total,)
    """Return the index of each item's basket's first item; without baskets, its own.

    >>> ragged = Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4]), baskets=np.array([0, 0, 1, 1]))
    >>> basket_starts(ragged)
    array([0, 0, 2, 3])
    """
    where = np.arange(len(ragged.values))
    if ragged.baskets is None:
        return where
    begins = np.append(True, np.diff(ragged.baskets) != 0)[: len(where)]
    begins[ragged.offsets[:-1][ragged.lengths > 0]] = True
    return np.maximum.accumulate(np.where(begins, where, 0))


def emptied(ragged: Ragged, rows: NDArray[np.bool_]) -> Ragged:  # rows (N,)
    """Empty the rows marked True.

    >>> emptied(Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4])), np.array([True, False])).offsets
    array([0, 0, 1])
    """
    kept = ~np.repeat(rows, ragged.lengths)
    known = {name: of_items[kept] for name in ("baskets", "days") if (of_items := getattr(ragged, name)) is not None}
    return replace(Ragged.of(ragged.values[kept], np.where(rows, 0, ragged.lengths)), **known)


def length_bucketed_batches(
    lengths: NDArray[np.int64],  # (N,)
    *,
    batch_size: int,  # of all but the last of the last bucket
    seed: int,
    epoch: int,
    bucket_factor: int = 50,  # more is less padding and less randomness
) -> list[NDArray[np.int64]]:
    """Batch rows of two items or more by similar length, in an order set by (seed, epoch).

    Rows are sorted by length within buckets of `bucket_factor` batches.
    """
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(np.flatnonzero(lengths >= 2))
    size = bucket_factor * batch_size
    buckets = (rows[first : first + size] for first in range(0, len(rows), size))
    order = [bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets]
    batches = [bucket[first : first + batch_size] for bucket in order for first in range(0, len(bucket), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]
