from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from adagrpo.data import pairs
from adagrpo.lists.sources import WITHIN, similarities, successors
from adagrpo.sparse_rows import largest_of_rows, with_largest
from adagrpo.types import Ragged


@pytest.mark.parametrize("limit", [1, 3, 8, 100])
def test_the_largest_are_those_of_a_sort_that_keeps_the_order_of_equals(limit: int) -> None:
    generator = np.random.default_rng(limit)
    row = np.sort(generator.integers(0, 40, 1_000))
    weights = generator.integers(-1, 6, 1_000).astype(np.float32)  # many are equal, some are not positive
    expected = np.zeros(1_000, np.bool_)
    for one in np.unique(row):
        found = np.flatnonzero(row == one)
        best = found[np.argsort(-weights[found], kind="stable")][:limit]
        expected[best[weights[best] > 0]] = True
    np.testing.assert_array_equal(largest_of_rows(np.bincount(row), weights, limit), expected)
    matrix = sparse.coo_array((weights, (row, np.arange(1_000))), shape=(40, 1_000)).tocsr()
    kept = with_largest(matrix, limit)
    np.testing.assert_array_equal(kept.toarray(), matrix.toarray() * expected)


def test_neighbours_counted_in_blocks_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 9, 60)
    offsets = np.append(0, lengths.cumsum())
    training = Ragged(generator.integers(0, 25, offsets[-1]).astype(np.int32), offsets)
    whole = [found(training, 25, 6).toarray() for found in (similarities, successors)]
    has = np.zeros((60, 25))
    follows = np.zeros((25, 25))
    for user in range(60):
        items = training.row(user)
        has[user, items] = 1
        for steps in range(1, WITHIN + 1):
            np.add.at(follows, (items[:-steps], items[steps:]), 1 / steps)
    together = has.T @ has
    norms = np.sqrt(together.diagonal())
    for found, every in zip(
        whole, (together / np.maximum(np.outer(norms, norms), 1e-9), follows / np.sqrt(1 + follows.sum(0))), strict=True
    ):
        np.fill_diagonal(every, 0)
        np.testing.assert_allclose(found[found > 0], every[found > 0], rtol=1e-5)
        assert ((found > 0).sum(1) == np.minimum(6, (every > 0).sum(1))).all()
    monkeypatch.setattr(pairs, "_PRODUCTS", 40)
    for found, again in zip(whole, (similarities, successors), strict=True):
        np.testing.assert_array_equal(found, again(training, 25, 6).toarray())
