from __future__ import annotations

import numpy as np
import pytest

from adagrpo.diagnosis.orders import (
    MIN_MOVED,
    Cell,
    bounded_interval,
    gains,
    measure,
    popularity_cells,
    thirds,
)


def test_thirds_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.nan])
    cells = thirds("x", values, digits=1)
    assert [cell.name for cell in cells] == ["x low (≤ 2.7)", "x middle", "x high (> 4.3)"]
    assert [np.flatnonzero(cell.rows).tolist() for cell in cells] == [[0, 1], [2, 3], [4, 5]]


def test_an_edge_of_counts_is_one_that_they_are_below() -> None:
    cells = thirds("shown", np.array([2, 2, 2, 3, 5, 8, 9, 11, 20]), digits=0)
    assert [(cell.name, int(cell.rows.sum())) for cell in cells] == [
        ("shown low (≤ 2)", 3),
        ("shown middle", 3),
        ("shown high (> 8)", 3),
    ]


def test_equal_values_stay_together_and_nothing_known_gives_no_cell() -> None:
    assert [cell.rows.tolist() for cell in thirds("x", np.ones(4))] == [[True] * 4]
    assert thirds("x", np.full(3, np.nan)) == []


def test_popularity_by_hand() -> None:
    """Of 12 interactions the tail holds the 4 of items 0, 1, 2, the head those of item 4."""
    cells = popularity_cells(np.array([0, 3, 4, 4]), np.array([1, 1, 2, 3, 5]))
    assert {cell.name: cell.rows.tolist() for cell in cells} == {
        "head (1 items)": [False, False, True, True],
        "middle (1 items)": [False, True, False, False],
        "tail (3 items)": [True, False, False, False],
    }


def test_few_cases_that_move_are_no_evidence() -> None:
    values = np.zeros(500)
    values[: MIN_MOVED - 1] = 1.0
    few = bounded_interval(values)
    assert few.low > 0 and few.p_value == 1.0
    values[MIN_MOVED - 1] = 1.0
    assert bounded_interval(values).p_value < 0.01
    assert bounded_interval(np.zeros(0)) == (0.0, 0.0, 0.0, 1.0)


def test_a_cell_is_measured_by_hand() -> None:
    ranks = {"policy": np.array([1, 11, 0, 3]), "mix": np.array([3, 1, 0, 1])}
    orders = {name: gains(actual) for name, actual in ranks.items()}
    rows = measure([Cell("c", np.array([True, True, True, False]))], orders, ranks["policy"] > 0, resamples=50, seed=0)
    (row,) = rows
    assert (row["cell"], row["cases"], row["in_beam"]) == ("c", 3, pytest.approx(2 / 3))
    assert row["orders"]["policy"] == pytest.approx({"hr@10": 1 / 3, "ndcg@10": 1 / 3})
    assert row["orders"]["mix"] == pytest.approx({"hr@10": 2 / 3, "ndcg@10": 0.5})
    assert set(row["minus_policy"]) == {"mix"}
    assert row["minus_policy"]["mix"]["hr@10"]["mean"] == pytest.approx(1 / 3)
    assert row["minus_policy"]["mix"]["ndcg@10"]["mean"] == pytest.approx(1 / 6)
