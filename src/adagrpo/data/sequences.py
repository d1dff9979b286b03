"""Padded batches of sequences, and their order as a function of (seed, epoch).

Histories are short and of uneven length (half of the Amazon ones have six items or fewer): padding all of them to the
longest would waste most of the work, so sequences of similar length are batched together.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adagrpo.types import Histories, Ragged


def pad(ragged: Ragged, rows: NDArray[np.integer], max_length: int) -> Histories:
    """The last `max_length` items of some rows, padded on the right with 0.

    Args:
        rows: (B,) which of them; each holds at least one item.
        max_length: longest history kept, at least 1.

    Returns:
        Histories of `B` rows, as wide as the longest of them.

    >>> pad(Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4])), np.array([1, 0]), 2).items
    tensor([[8, 0],
            [6, 7]])
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    lengths = np.minimum(_lengths(ragged, rows), max_length)
    if len(lengths) and lengths.min() < 1:
        raise ValueError("rows holds an empty sequence; a history has at least one item")
    real = np.arange(lengths.max(initial=1)) < lengths[:, None]
    items = np.zeros(real.shape, np.int64)
    items[real] = ragged.parts(ragged.offsets[np.asarray(rows) + 1] - lengths, lengths)
    return Histories(torch.from_numpy(items), torch.from_numpy(lengths.astype(np.int64)))


def older_items(ragged: Ragged, rows: NDArray[np.integer], max_length: int) -> Tensor:
    """Return what `pad` leaves out of some rows: the items before the last `max_length`, oldest first, padded with -1.

    Args:
        rows: (B,) which of them.
        max_length: of `pad`.

    Returns:
        (B, O) int64; O is 0 where no row is longer than `max_length`.

    >>> older_items(Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4])), np.array([1, 0]), 2)
    tensor([[-1],
            [ 5]])
    """
    lengths = np.maximum(_lengths(ragged, rows) - max_length, 0)
    real = np.arange(lengths.max(initial=0)) < lengths[:, None]
    items = np.full(real.shape, -1, np.int64)
    items[real] = ragged.parts(ragged.offsets[np.asarray(rows)], lengths)
    return torch.from_numpy(items)


def _lengths(ragged: Ragged, rows: NDArray[np.integer]) -> NDArray[np.int64]:  # (B,)
    """Those of some rows: a batch need not look at all users."""
    return np.asarray(ragged.offsets[np.asarray(rows) + 1] - ragged.offsets[rows])


def emptied(
    ragged: Ragged,
    rows: NDArray[np.bool_],  # (N,)
) -> Ragged:
    """The same `N` rows, of which those that are True hold nothing any more.

    >>> emptied(Ragged(np.array([5, 6, 7, 8], np.int32), np.array([0, 3, 4])), np.array([True, False])).offsets
    array([0, 0, 1])
    """
    kept = ~np.repeat(rows, ragged.lengths)
    return Ragged.of(ragged.values[kept], np.where(rows, 0, ragged.lengths))


def length_bucketed_batches(
    lengths: NDArray[np.int64],  # (N,)
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    bucket_factor: int = 50,
) -> list[NDArray[np.int64]]:
    """Cut the rows of two items or more into batches of similar length, in random order.

    Rows are shuffled, sorted by length within buckets of `bucket_factor` batches, cut, and the batches shuffled.

    Args:
        lengths: (N,) length of every row.
        batch_size: rows a batch; the last batch of the last bucket may be smaller.
        seed: of the order.
        epoch: each epoch has its own order; nothing else is remembered from one to the next.
        bucket_factor: batches a bucket: more is less padding and less randomness.

    Returns:
        Batches of row indices; every row of two items or more is in exactly one.
    """
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(np.flatnonzero(lengths >= 2))
    size = bucket_factor * batch_size
    buckets = (rows[first : first + size] for first in range(0, len(rows), size))
    order = [bucket[np.argsort(lengths[bucket], kind="stable")] for bucket in buckets]
    batches = [bucket[first : first + batch_size] for bucket in order for first in range(0, len(bucket), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]
