from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrpo.semantic_ids.quantization import assign_within


def greedy(distances: np.ndarray, capacities: list[int]) -> list[int]:
    """All pairs from the closest on, each made if the point is free and the place has room."""
    chosen, room = [-1] * len(distances), list(capacities)
    points, places = distances.shape
    for _, point, place in sorted((distances[i, k], i, k) for i in range(points) for k in range(places)):
        if chosen[point] < 0 and room[place]:
            chosen[point] = place
            room[place] -= 1
    return chosen


@settings(max_examples=80, deadline=None)
@given(
    capacities=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    spare=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_it_is_the_greedy_loop(capacities: list[int], spare: int, seed: int) -> None:
    points = max(sum(capacities) - spare, 0)
    distances = np.random.default_rng(seed).normal(size=(points, len(capacities)))
    assert assign_within(distances, np.array(capacities)).tolist() == greedy(distances, capacities)


@settings(max_examples=80, deadline=None)
@given(
    capacities=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 1000),
)
def test_ties_go_to_the_lower_point(capacities: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 3, size=sum(capacities)).astype(float)
    distances = np.repeat(rows[:, None], len(capacities), axis=1)  # every place equally far
    assert assign_within(distances, np.array(capacities)).tolist() == greedy(distances, capacities)


def test_whoever_is_turned_away_goes_to_the_next_best_and_may_push_another_on() -> None:
    distances = np.array([[0.0, 4.0, 9.0], [1.0, 2.0, 9.0], [5.0, 1.0, 3.0]])
    assert assign_within(distances, np.array([1, 1, 1])).tolist() == [0, 2, 1]
    assert assign_within(distances, np.array([3, 3, 3])).tolist() == [0, 0, 1]


def test_no_point_needs_no_place() -> None:
    assert assign_within(np.empty((0, 2)), np.array([0, 1])).tolist() == []


@pytest.mark.parametrize(
    ("distances", "capacities"),
    [
        (np.zeros((3, 2)), [1, 1]),
        (np.zeros((1, 2)), [2, -1]),
        (np.zeros((1, 2)), [1]),
        (np.zeros(2), [1, 1]),
        (np.full((1, 1), np.nan), [1]),
    ],
)
def test_bad_arguments(distances: np.ndarray, capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        assign_within(distances, np.array(capacities))
