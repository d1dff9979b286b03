"""User-kNN and similar content against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adagrpo.lists import user_knn
from adagrpo.lists.content import ContentSimilarity
from adagrpo.lists.query import Query, past_of_queries
from adagrpo.lists.user_knn import NearestUsers
from adagrpo.types import Asking, Histories, Ragged

TRAINING = [[0, 1, 2], [1, 2], [2, 3, 1], [4], [0, 4, 2, 2]]


def training(baskets: list[int] | None = None) -> Ragged:
    values = np.array([item for row in TRAINING for item in row], np.int32)
    offsets = np.cumsum([0, *map(len, TRAINING)])
    return Ragged(values, offsets, baskets=None if baskets is None else np.array(baskets, np.int32))


def histories(*rows: list[int]) -> Histories:
    items = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, history in enumerate(rows):
        items[row, : len(history)] = torch.tensor(history)
    return Histories(items, torch.tensor([len(row) for row in rows]))


def taste(history: list[int], ago: list[int]) -> np.ndarray:
    found = np.zeros(6)
    for item, back in zip(history, ago, strict=True):
        found[item] += 0.9**back
    return found


@pytest.mark.parametrize("kept", [2, 5])
def test_scores_are_the_mean_tastes_of_the_nearest_users(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(user_knn, "NEIGHBOURS", kept)
    tastes = np.stack([taste(row, list(range(len(row)))[::-1]) for row in TRAINING])
    mine = taste([3, 1], [1, 0])
    near = tastes @ mine / np.linalg.norm(tastes, axis=1) / np.linalg.norm(mine)
    near[np.argsort(-near)[kept:]] = 0.0
    expected = near @ tastes / near.sum()
    scores = NearestUsers(training(), 6, {}).scores(histories([4], [3, 1]))
    assert scores.shape == (2, 6) and scores[1].exp().isfinite().all()
    assert torch.where(scores[1].isinf(), 0.0, scores[1]).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert (scores[1] == -torch.inf).tolist() == (expected == 0).tolist()
    alone = NearestUsers(training(), 6, {}).scores(histories([3, 1]))
    assert torch.equal(alone[0], scores[1])  # whoever else is asked


def test_items_of_one_basket_weigh_alike_and_users_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    bought = training([0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 2])
    past = past_of_queries([Query([3, 1], baskets=[0, 0])], grouped=True)
    monkeypatch.setattr(user_knn, "NEIGHBOURS", 1)
    (scores,) = NearestUsers(bought, 6, {}).scores(histories([3, 1])._replace(past=past))
    assert scores[[2, 3, 1]].tolist() == pytest.approx([0.9, 1.0, 1.0])  # user 2: 2, then 3 and 1 together
    assert (scores[[0, 4, 5]] == -torch.inf).all()
    monkeypatch.setattr(user_knn, "MOST_USERS", 2)
    some = [NearestUsers(bought, 6, {}).scores(histories([3, 1])) for _ in range(2)]
    assert torch.equal(*some)


def test_nobody_is_a_neighbour_of_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_knn, "NEIGHBOURS", 1)
    known = NearestUsers(training(), 6, {"ann": 2})
    asked = histories([2, 3, 1], [2, 3, 1], [2, 3, 1])._replace(asking=Asking(["ann", None, "bob"], [None] * 3))
    (ann, nobody, unknown) = known.scores(asked)
    assert ann[[1, 2]].tolist() == pytest.approx([0.9, 1.0]) and ann[3] == -torch.inf  # user 1, not himself
    assert torch.equal(nobody, unknown) and nobody[3] == pytest.approx(0.9)
    by_row = known.scores(histories([2, 3, 1])._replace(asking=Asking([2], [None], rows=True)))
    assert torch.equal(by_row[0], ann)


@pytest.mark.parametrize("user", range(len(TRAINING)))
def test_nobody_is_a_neighbour_of_himself_among_drawn_users_either(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    drawn = np.sort(np.random.default_rng(0).choice(len(TRAINING), 3, replace=False))
    others = NearestUsers(training().rows(drawn[drawn != user]), 6, {}).scores(histories(TRAINING[user]))
    monkeypatch.setattr(user_knn, "MOST_USERS", 3)
    asked = histories(TRAINING[user])._replace(users=torch.tensor([user]))
    assert torch.allclose(NearestUsers(training(), 6, {}).scores(asked), others)


def test_content_is_the_cosine_with_the_decayed_sum() -> None:
    vectors = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    profile = 0.7 * unit[3] + unit[1]
    expected = unit @ profile / np.linalg.norm(profile)
    source = ContentSimilarity(vectors)
    scores = source.scores(histories([4], [3, 1]))
    np.testing.assert_allclose(scores[1].numpy(), expected, rtol=1e-5, atol=1e-6)
    some = source.scores_at(histories([4], [3, 1]), torch.tensor([[0, 5], [2, -1]]))
    np.testing.assert_allclose(some[1, 0], expected[2], rtol=1e-5)
    np.testing.assert_allclose(some[0], scores[0, [0, 5]], rtol=1e-5)
    assert torch.equal(source.feature(scores), scores)
    nothing = ContentSimilarity(np.zeros((6, 1), np.float32)).scores(histories([3, 1]))
    assert nothing.tolist() == [[0.0] * 6]
