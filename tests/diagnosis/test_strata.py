from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adagrpo.diagnosis import Lists, Observations
from adagrpo.diagnosis.orders import target_ranks
from adagrpo.diagnosis.strata import (
    MIN_MOVED,
    Cell,
    beam_discriminability,
    bounded_interval,
    circular_table,
    discriminability_cells,
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


def slow_q(lists: Lists, rewards: Any, own: Any, row: int) -> float:
    others = [
        reward
        for item, reward in zip(lists.items[row], rewards[row], strict=True)
        if item >= 0 and item != lists.targets[row]
    ]
    points = [1.0 if own[row] > reward else 0.5 if own[row] == reward else 0.0 for reward in others]
    return float(np.mean(points)) if points else 0.0


def test_discriminability_over_the_beam_is_plain_counting() -> None:
    generator = np.random.default_rng(0)
    items = np.argsort(generator.random((30, 15)), axis=1)[:, :8]
    items[::4, 5:] = -1
    rewards = generator.integers(0, 5, items.shape).astype(float)
    own = generator.integers(0, 5, 30).astype(float)
    lists = Lists(items, np.zeros(items.shape), rewards, generator.integers(0, 15, 30))
    actual = beam_discriminability(lists, rewards, own)
    assert actual == pytest.approx([slow_q(lists, rewards, own, row) for row in range(30)], rel=1e-12)


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


@pytest.fixture(scope="module")
def observations(observed: Callable[..., Observations]) -> Observations:
    return observed(0, 300, 0.0)  # a ranker that knows nothing


def test_the_circular_cells_are_those_of_plain_counting(observations: Observations) -> None:
    lists, own = observations.lists, observations.sampled.rewards.target.double().numpy()
    hard = np.arange(300) % 2 == 0
    table = circular_table(lists, own, [Cell("even", hard)], seed=0)
    q = np.array([slow_q(lists, lists.rewards, own, row) for row in range(300)])
    policy, ranker = (target_ranks(lists, keys) for keys in (lists.log_probs, lists.rewards))
    assert [row["discriminability"] for row in table] == [cell.name for cell in discriminability_cells(q)]
    for row, band in zip(table, (q >= 0.95, (q >= 0.8) & (q < 0.95), q < 0.8), strict=True):
        rows = hard & band
        assert row["ranker"]["cases"] == rows.sum() > 0
        for order, ranks in (("policy", policy), ("own_order", ranker)):
            assert row["ranker"][order]["hr@10"] == pytest.approx(((ranks >= 1) & (ranks <= 10))[rows].mean())
    for name in ("ranker", "shuffled", "random"):
        assert sum(row[name]["cases"] for row in table) == pytest.approx(150)


def test_a_ranker_that_knows_nothing_looks_as_good_as_its_controls(observations: Observations) -> None:
    """The pattern of the paper appears for all three: gains where q is high, losses where it is low."""
    everyone = Cell("all cases", np.ones(300, dtype=bool))
    own = observations.sampled.rewards.target.double().numpy()
    high, middle, low = circular_table(observations.lists, own, [everyone], seed=0)
    for name in ("ranker", "shuffled", "random"):
        assert high[name]["own_order"]["hr@10"] > high[name]["policy"]["hr@10"] + 0.1
        assert low[name]["own_order"]["hr@10"] < low[name]["policy"]["hr@10"] - 0.1
        # each share is a rank among 30 or 31 candidates: 1 or 2 of them lie at .95 and above, 5 or 6 at .8 and above
        assert 0.02 < high[name]["cases"] / 300 < 0.11
        assert 0.12 < (high[name]["cases"] + middle[name]["cases"]) / 300 < 0.28
