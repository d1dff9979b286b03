"""Padding against a loop, and batches as a function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adagrpo.data.sequences import emptied, length_bucketed_batches, older_items, pad
from adagrpo.types import Ragged


def make_ragged(lengths: list[int], seed: int = 0) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.random.default_rng(seed).integers(1, 1000, size=offsets[-1]).astype(np.int32)
    return Ragged(values, offsets)


@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_pad_against_a_loop(max_length: int) -> None:
    ragged = make_ragged([3, 1, 0, 7, 2, 5])
    rows = np.array([3, 0, 0, 5, 1])
    histories = pad(ragged, rows, max_length)
    kept = [ragged.row(row)[-max_length:].tolist() for row in rows]
    width = max(len(row) for row in kept)
    assert histories.lengths.tolist() == [len(row) for row in kept]
    assert histories.items.tolist() == [row + [0] * (width - len(row)) for row in kept]
    assert histories.items.dtype == histories.lengths.dtype == torch.int64


def test_pad_edges() -> None:
    ragged = make_ragged([2, 0])
    with pytest.raises(ValueError, match="empty sequence"):
        pad(ragged, np.array([1]), 3)
    with pytest.raises(ValueError, match="max_length"):
        pad(ragged, np.array([0]), 0)
    assert pad(ragged, np.array([], dtype=np.int64), 3).items.shape[0] == 0


@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_what_padding_leaves_out_is_still_known(max_length: int) -> None:
    generator = np.random.default_rng(max_length)
    lengths = generator.integers(1, 12, 30)
    values = generator.integers(0, 25, lengths.sum()).astype(np.int32)
    ragged = Ragged(values, np.concatenate([[0], lengths.cumsum()]).astype(np.int64))
    rows = generator.permutation(30)[:9]
    older = older_items(ragged, rows, max_length)
    assert older.dtype == torch.int64 and older.shape == (9, max(0, lengths[rows].max() - max_length))
    for row, items in zip(rows, older.tolist(), strict=True):
        expected = ragged.row(row)[:-max_length].tolist()
        assert items == expected + [-1] * (len(items) - len(expected))
    histories = pad(ragged, rows, max_length)._replace(older=older)
    asked = torch.arange(-1, 25).expand(9, -1)
    for row, actual in zip(rows, histories.holds(asked).tolist(), strict=True):
        assert actual == [item in ragged.row(row) for item in range(-1, 25)]
    some = histories.rows(torch.tensor([4, 0]))
    assert torch.equal(some.holds(asked[:2]), histories.holds(asked)[[4, 0]])


def test_batches_hold_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(0, 30, size=1000)
    batches = length_bucketed_batches(lengths, batch_size=16, seed=3, epoch=0, bucket_factor=10)
    assert sorted(np.concatenate(batches).tolist()) == np.flatnonzero(lengths >= 2).tolist()
    assert max(len(batch) for batch in batches) == 16
    assert sum(len(batch) < 16 for batch in batches) <= 1


def test_batches_waste_little() -> None:
    lengths = np.random.default_rng(0).integers(2, 50, size=4000)

    def padding(batches: list[np.ndarray]) -> float:
        return 1 - lengths.sum() / sum(len(batch) * lengths[batch].max() for batch in batches)

    bucketed = length_bucketed_batches(lengths, batch_size=20, seed=0, epoch=0)
    unsorted = length_bucketed_batches(lengths, batch_size=20, seed=0, epoch=0, bucket_factor=1)
    assert padding(bucketed) < 0.05 < padding(unsorted)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.full(100, 5)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(length_bucketed_batches(lengths, batch_size=8, seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*pair)) for pair in ((1, 2), (1, 3), (2, 2), (2, 1))}) == 4


def test_no_row_is_long_enough() -> None:
    assert length_bucketed_batches(np.array([1, 0]), batch_size=4, seed=0, epoch=0) == []


def test_emptied_rows_leave_the_baskets_of_the_others() -> None:
    baskets, days = np.array([0, 0, 1, 0, 1, 1], np.int32), np.array([1.0, 1, 2, 3, 4, 4])
    ragged = Ragged(np.arange(6, dtype=np.int32), np.array([0, 3, 6]), baskets=baskets, days=days)
    kept = emptied(ragged, np.array([True, False]))
    assert kept.values.tolist() == [3, 4, 5] and kept.offsets.tolist() == [0, 0, 3]
    assert kept.baskets is not None and kept.baskets.tolist() == [0, 1, 1]
    assert kept.days is not None and kept.days.tolist() == [3, 4, 4]
