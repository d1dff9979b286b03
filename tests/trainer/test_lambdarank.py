"""Groups for LambdaRank: who is a target, what is drawn, and that a fit is a function of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adagrpo.rewards.features import Features
from adagrpo.trainer.lambdarank import (
    NegativeSampler,
    RankingGroups,
    fit_lambdarank,
    logged_groups,
    shown_groups,
    validation_groups,
)
from adagrpo.trainer.ranker_fit import Impressions
from adagrpo.types import Cases, Ragged

ITEMS = 40


def ragged(rows: list[list[int]]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(np.array([item for row in rows for item in row], np.int32), offsets)


def rows() -> list[list[int]]:
    """Users who walk along a ring, now and then somewhere else; the first three have too little to learn from."""
    draw = np.random.default_rng(0)
    steps = [np.where(draw.random(n) < 0.2, draw.integers(0, ITEMS, n), 1) for n in draw.integers(3, 9, 60)]
    walks = [((int(draw.integers(ITEMS)) + step.cumsum()) % ITEMS).tolist() for step in steps]
    return [[], [5], [7], *walks]


def seen(groups: RankingGroups, row: int) -> list[int]:
    return groups.histories[row, : groups.lengths[row]].tolist()


def test_the_last_positions_of_every_user_are_targets() -> None:
    sequences = rows()
    groups = logged_groups(NegativeSampler(ragged(sequences), ITEMS, 0), positions=2, negatives=12, max_history=3)
    expected = set()
    for user, row in enumerate(sequences):
        for place in range(max(1, len(row) - 2), len(row)):
            expected.add((user, tuple(row[max(0, place - 3) : place]), row[place]))
    actual = set()
    for row in range(len(groups.items)):
        chosen = groups.items[row][groups.chosen[row]].tolist()
        assert len(chosen) == 1
        actual.add((int(groups.users[row]), tuple(seen(groups, row)), chosen[0]))
    assert actual == expected


def test_nothing_is_drawn_that_the_user_has_or_twice() -> None:
    sequences = rows()
    groups = logged_groups(NegativeSampler(ragged(sequences), ITEMS, 0), positions=2, negatives=30, max_history=5)
    for row in range(len(groups.items)):
        drawn = groups.items[row][~groups.chosen[row] & (groups.items[row] >= 0)].tolist()
        assert drawn and len(set(drawn)) == len(drawn)
        assert not set(drawn) & set(sequences[groups.users[row]])
    assert len({int(place) for place in groups.chosen.argmax(1)}) > 5  # the target stands anywhere


def test_a_third_of_the_draws_each_is_uniform_popular_and_near() -> None:
    sequences = [[0, 1], [0, 1], [0, 1], [2, 3]]
    sampler = NegativeSampler(ragged(sequences), 10, 0)
    history = np.zeros((2000, 1), np.int64)
    users, lengths, avoid = np.full(2000, 3), np.ones(2000, np.int64), np.full((2000, 1), 9)
    drawn = sampler.draw(users, history, lengths, avoid, 3)
    uniform, popular, near = drawn.T
    assert set(uniform.tolist()) == {-1, 0, 1, 4, 5, 6, 7, 8}  # 2 and 3 are the user's, 9 is avoided
    assert set(popular.tolist()) <= {-1, 0, 1} and set(near.tolist()) <= {-1, 0, 1}
    nowhere = sampler.draw(users, np.full((2000, 1), 9), lengths, avoid, 3)
    assert (nowhere[:, 2] == -1).all()  # item 9 is near nothing


def test_the_sources_that_are_named_take_turns() -> None:
    sampler = NegativeSampler(ragged([[0, 1], [0, 1], [0, 1], [2, 3]]), 10, 0, ("popularity", "uniform"))
    users, history = np.full(2000, 3), np.full((2000, 1), 9)  # item 9 is near nothing
    avoid = np.full((2000, 1), 9)
    popular, uniform, again, _ = sampler.draw(users, history, np.ones(2000, np.int64), avoid, 4).T
    assert set(popular.tolist()) == set(again.tolist()) == {-1, 0, 1}
    assert set(uniform.tolist()) == {-1, 0, 1, 4, 5, 6, 7, 8}


def test_what_was_shown_is_grouped_by_moment() -> None:
    sequences = [[1, 2, 3, 4], [5, 6, 7]]
    shown = Impressions(
        np.array([0, 5, 9]),
        np.array([1, 1, 1, 2, 2, 1, 1, 2, 2]),
        np.array([2, 10, 11, 12, 13, 14, 6, 15, 16]),
        np.zeros(9, np.int64),
        np.array([True, False, False, False, False, False, True, False, False]),
        np.ones(9, np.float32),
    )
    groups = shown_groups(NegativeSampler(ragged(sequences), ITEMS, 0), shown, negatives=3, max_history=5)
    assert len(groups.items) == 2  # without a click there is nothing to rank
    assert [seen(groups, row) for row in range(2)] == [[1], [5]] and groups.users.tolist() == [0, 1]
    for row, (clicked, rest) in enumerate([({2}, {10, 11}), ({6}, {14})]):
        assert set(groups.items[row][groups.chosen[row]].tolist()) == clicked
        others = set(groups.items[row][~groups.chosen[row] & (groups.items[row] >= 0)].tolist())
        assert rest <= others and not others & (set(sequences[row]) | clicked)


def test_a_fit_finds_the_ring_and_repeats_itself_to_the_bit() -> None:
    pytest.importorskip("lightgbm")
    sequences = rows() * 4
    training = ragged([row[:-1] for row in sequences])
    sampler = NegativeSampler(training, ITEMS, 0)
    features = Features(training, [[] for _ in range(ITEMS)], [""] * ITEMS)
    groups = logged_groups(sampler, positions=3, negatives=20, max_history=5)
    users = [user for user, row in enumerate(sequences) if len(row) > 1]
    cases = Cases(
        np.array(users, np.int32),
        ragged([sequences[u][:-1] for u in users]),
        np.array([sequences[u][-1] for u in users]),
    )
    held_out = validation_groups(sampler, cases, negatives=20, max_history=5)

    reported: list[tuple[Any, ...]] = []

    def fit() -> Any:
        sizes = {"trees": 20, "leaves": 7, "minimum_leaf": 5, "seed": 1, "threads": 1}
        return fit_lambdarank(
            features, groups, held_out, **sizes, learning_rate=0.2, report=lambda *row: reported.append(row)
        )

    one = fit()
    assert [row[:2] for row in reported] == [(tree, 20) for tree in range(1, 21)]
    assert max(row[2]["ndcg@10"] for row in reported) == one.ndcg
    two = fit()
    assert one.model.model_to_string() == two.model.model_to_string()
    assert one.ndcg > 0.6 and one.groups == len(groups.items)
    assert 1 <= one.trees <= 20 and one.rows == int((groups.items >= 0).sum())


def test_an_item_shown_twice_does_not_stand_against_itself() -> None:
    shown = Impressions(
        np.array([0, 5, 8]),  # offsets a user
        np.array([1, 1, 1, 2, 2, 1, 1, 1]),  # history lengths
        np.array([5, 6, 5, 6, 7, 8, 8, 9]),
        np.zeros(8, np.int64),
        np.array([False, False, True, True, False, True, False, False]),
        np.ones(8, np.float32),
    )
    groups = shown_groups(NegativeSampler(ragged([[0, 1], [2, 3]]), ITEMS, 0), shown, negatives=0, max_history=5)
    found = [
        sorted((item, clicked) for item, clicked in zip(*row, strict=True) if item >= 0)
        for row in zip(groups.items.tolist(), groups.chosen.tolist(), strict=True)
    ]
    assert found == [[(5, True), (6, False)], [(6, True), (7, False)], [(8, True), (9, False)]]
    first = shown_groups(
        NegativeSampler(ragged([[0, 1], [2, 3]]), ITEMS, 0), shown, negatives=0, max_history=5, most_shown=1
    )
    assert len(first.items) == 0  # of each list the first item alone, against which nothing stands
