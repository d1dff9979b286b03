"""Counts of pairs are the same whether their matrix is kept whole or as a sorted list."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from adagrpo.data import pairs
from adagrpo.data.pairs import PairCounts


@pytest.mark.parametrize("largest", [5, 70_000])  # fits 16 bits, and does not
@pytest.mark.parametrize("whole", [0, 2**25])
def test_counts_are_those_of_the_matrix(whole: int, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_WHOLE", whole)
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((40, 40)) < 0.3, rng.integers(1, largest + 1, (40, 40)), 0).astype(np.float32)
    rows, columns = rng.integers(0, 40, (2, 7, 5, 1)), rng.integers(0, 40, (2, 1, 5, 3))
    found = PairCounts.of(sparse.csr_array(dense)).at(rows[0], columns[0])
    assert found.dtype == np.float32 and found.shape == (7, 5, 3)
    assert np.array_equal(found, dense[np.broadcast_arrays(rows[0], columns[0])[0], columns[0]])


@pytest.mark.parametrize("whole", [0, 2**25])
def test_where_nothing_was_counted_everything_is_zero(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_WHOLE", whole)
    nothing = PairCounts.of(sparse.csr_array((3, 3), dtype=np.float32))
    assert nothing.at(np.array([0, 2]), np.array([1, 2])).tolist() == [0.0, 0.0]
