"""Sources of items against loops over users, pairs of items and the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adagrpo.lists import sources
from adagrpo.lists.sources import NearestItems, RankerScores, Shares, popular_shares, similarities, successors
from adagrpo.networks import mixed_precision
from adagrpo.rewards.sequential import SequentialRanker
from adagrpo.types import Cases, Histories, Ragged

from ..listing import list_cases


def ragged(rows: list[list[int]]) -> Ragged:
    values = np.array([item for row in rows for item in row], dtype=np.int32)
    return Ragged(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))


def make_cases(rows: list[list[int]]) -> Cases:
    return Cases(np.arange(len(rows), dtype=np.int32), ragged(rows), np.zeros(len(rows), dtype=np.int32))


TRAINING = [[0, 1, 2], [1, 2], [2, 3, 1], [4], [0, 4, 2, 2], []]
CASES = [[0], [3, 1], [4, 2], [5], [1, 2, 0]]


def slow_similarity(rows: list[list[int]], count: int) -> NDArray[np.float64]:
    users = [{u for u, row in enumerate(rows) if item in row} for item in range(count)]
    result = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j and users[i] and users[j]:
                result[i, j] = len(users[i] & users[j]) / np.sqrt(len(users[i]) * len(users[j]))
    return result


def test_successors_are_the_loop() -> None:
    counts = np.zeros((6, 6))
    for row in TRAINING:
        for place, item in enumerate(row):
            for ahead in range(1, 4):
                if place + ahead < len(row):
                    counts[item, row[place + ahead]] += 1 / ahead
    expected = counts / np.sqrt(1 + counts.sum(axis=0))
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(successors(ragged(TRAINING), 6).toarray(), expected, rtol=1e-6)
    first = np.where(expected == expected.max(axis=1, keepdims=True), expected, 0.0)[4]
    np.testing.assert_allclose(successors(ragged(TRAINING), 6, 1).toarray()[4], first, rtol=1e-6)


POPULAR = Shares(popular_shares(ragged(TRAINING).counts(6)))


def test_popularity_by_hand() -> None:
    # counts of items 0 .. 5: 2 3 5 1 2 0
    actual = list_cases(POPULAR, make_cases(CASES), width=2)
    assert actual.tolist() == [[2, 1]] * 5
    masked = list_cases(
        POPULAR,
        make_cases(CASES),
        width=2,
        exclude_history=True,
        batch_size=2,
    )
    assert masked[1].tolist()[0] == 2 and masked[4].tolist()[0] == 4
    assert masked.shape == (5, 2) and 2 not in masked[2]
    narrow = list_cases(POPULAR, make_cases(CASES), width=2, eligible=torch.arange(6) > 2)
    assert narrow.tolist() == [[4, 3]] * 5


def test_a_list_longer_than_the_catalogue_ends_in_none() -> None:
    actual = list_cases(
        POPULAR,
        make_cases([[1, 2, 0]]),
        width=8,
        exclude_history=True,
        batch_size=2,
    )
    assert sorted(actual[0].tolist()) == [-1, -1, -1, -1, -1, 3, 4, 5]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("size", [1, 2, 9])
def test_item_knn_is_the_loop(mask: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DECAY", 0.5)
    similarity = slow_similarity(TRAINING, 6)
    source = NearestItems(similarities(ragged(TRAINING), 6))
    actual = list_cases(source, make_cases(CASES), width=6, exclude_history=mask, batch_size=size)
    for row, history in enumerate(CASES):
        scores = np.zeros(6)
        for age, item in enumerate(reversed(history)):
            scores += 0.5**age * similarity[item]
        allowed = [i for i in range(6) if scores[i] > 0 and not (mask and i in history)]
        listed = [i for i in actual[row].tolist() if i >= 0]
        assert sorted(listed) == allowed
        assert actual[row, len(listed) :].tolist() == [-1] * (6 - len(listed))
        np.testing.assert_allclose(scores[listed], np.sort(scores[allowed])[::-1], rtol=1e-6)


@pytest.mark.parametrize("most", [1, 2])
def test_of_a_long_history_the_last_items_are_read_and_all_are_left_out(most: int) -> None:
    source = NearestItems(similarities(ragged(TRAINING), 6))
    actual = list_cases(source, make_cases(CASES), width=6, exclude_history=True, max_history=most, batch_size=2)
    cut = list_cases(source, make_cases([history[-most:] for history in CASES]), width=6)
    for row, history in enumerate(CASES):
        expected = [item for item in cut[row].tolist() if item not in history]
        assert [item for item in actual[row].tolist() if item >= 0] == [item for item in expected if item >= 0]


def test_only_the_nearest_neighbours_of_an_item_count() -> None:
    # item 1 is near 2 (2 of 2 users) and 0 (1 of 2): with one neighbour only 2 is left
    training = ragged([[1, 2], [1, 2, 0]])
    assert list_cases(
        NearestItems(similarities(training, 3, 1)), make_cases([[1]]), width=3, batch_size=2
    ).tolist() == [[2, -1, -1]]
    assert list_cases(
        NearestItems(similarities(training, 3, 2)), make_cases([[1]]), width=3, batch_size=2
    ).tolist() == [[2, 0, -1]]


def test_weights_that_are_converted_once_give_the_scores_of_the_ranker() -> None:
    ranker = SequentialRanker(30, width=16, max_history=5, seed=3).eval()
    histories = Histories(torch.tensor([[4, 9, 1], [7, 0, 0]]), torch.tensor([3, 1]))
    with torch.no_grad(), mixed_precision(ranker):
        expected = ranker.catalogue_scores(ranker.last_states(histories))
    assert torch.equal(RankerScores(ranker).scores(histories), expected)
