"""EASE against its definition: each column is a ridge regression on the other items."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo.lists import ease
from adagrpo.lists.ease import item_weights
from adagrpo.types import Ragged

ROWS = [[0, 1, 2], [1, 2], [2, 3, 1], [4], [0, 4, 2, 2], [], [3, 0]]


def training() -> Ragged:
    values = np.array([item for row in ROWS for item in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, ROWS)]).astype(np.int64))


def test_each_item_is_a_ridge_regression_on_the_others() -> None:
    held = np.array([[float(item in row) for item in range(6)] for row in ROWS])  # item 5 is in no row
    expected = np.zeros((6, 6))
    for item in range(6):
        others = [other for other in range(6) if other != item]
        x, y = held[:, others], held[:, item]
        expected[others, item] = np.linalg.solve(x.T @ x + 0.5 * np.eye(5), x.T @ y)
    np.testing.assert_allclose(item_weights(training(), 6, penalty=0.5).toarray(), expected, rtol=1e-5, atol=1e-6)


def test_the_largest_weights_of_each_row_are_kept_whatever_their_sign() -> None:
    whole = item_weights(training(), 6, penalty=0.5).toarray()
    few = item_weights(training(), 6, penalty=0.5, kept=2).toarray()
    for row, kept in zip(whole, few, strict=True):
        largest = np.argsort(-np.abs(row), kind="stable")[:2]
        assert {*np.flatnonzero(kept)} == {*largest[row[largest] != 0]}
        np.testing.assert_array_equal(kept[kept != 0], row[kept != 0])
    assert (whole < 0).any()


def test_a_catalogue_that_is_too_large_has_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MOST_ITEMS", 5)
    assert item_weights(training(), 6).nnz == 0 and item_weights(training(), 6).shape == (6, 6)
