"""What users took and passed over, against closed forms."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.lists import taste
from adagrpo.lists.taste import Passed, Tastes, descriptions, user_tastes
from adagrpo.types import Asking, Histories

USERS, ITEMS = np.array([0, 0, 1, 0, 1]), np.array([0, 1, 1, 2, 0])
CLICKED, SLOTS = np.array([True, False, True, False, False]), np.array([0, 1, 0, 1, 0])


def asked(*users: str | None) -> Histories:
    some = torch.zeros(len(users), 1, dtype=torch.int64)
    return Histories(some, torch.ones(len(users), dtype=torch.int64), asking=Asking(users, [None] * len(users)))


@pytest.mark.parametrize("width", [2, 9], ids=["more impressions than features", "fewer"])
def test_tastes_are_ridge_regressions_of_what_is_left_of_clicks(width: int) -> None:
    described = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    found = user_tastes(USERS, ITEMS, CLICKED, None, described, 3)
    mean = 3 / 7
    rates = np.array([(1 + 50 * mean) / 52, (1 + 50 * mean) / 52, (50 * mean) / 51])
    for user in (0, 1):
        z, left = described[ITEMS[user == USERS]], (CLICKED - rates[ITEMS])[user == USERS]
        expected = np.linalg.solve(z.T @ z + 10 * np.eye(width), z.T @ left)
        np.testing.assert_allclose(found[user], expected, atol=1e-5)
    assert not found[2].any()  # was shown nothing


def test_a_click_far_down_says_more() -> None:
    described = np.eye(2, dtype=np.float32)
    users, items, slots = np.array([0, 1] + [2] * 400), np.array([0, 0] + [1] * 400), np.array([0, 1] + [0, 1] * 200)
    clicked = np.array([True, True] + [True, False] * 200)
    found = user_tastes(users, items, clicked, slots, described, 3)
    assert found[1, 0] > found[0, 0] > 0


def test_only_the_last_impressions_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taste, "MOST_SHOWN", 1)
    found = user_tastes(USERS, ITEMS, CLICKED, None, np.eye(3, dtype=np.float32), 2)
    assert np.flatnonzero(found[0]).tolist() == [2] and np.flatnonzero(found[1]).tolist() == [0]


def test_descriptions_join_vectors_attributes_and_numbers() -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 40)).astype(np.float32)
    attributes = [["kind=a"] if item % 2 else ["kind=b"] for item in range(12)]
    columns = pl.DataFrame({"title": ["x"] * 12, "price": [str(price) for price in range(11)] + [None]})
    found = descriptions(vectors, attributes, columns)
    assert found.shape == (12, 32 + 2 + 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    prices = found[:, -8:]
    assert prices[0].argmax() == 0 and prices[10].argmax() == 7 and not prices[11].any()
    assert np.allclose(prices[5] @ prices[6], prices[4] @ prices[5], atol=0.05) and prices[0] @ prices[10] == 0
    assert descriptions(np.zeros((3, 0), np.float32), [[]] * 3, pl.DataFrame()).tolist() == [[0.0]] * 3


def test_unknown_users_have_no_taste_and_passed_over_nothing() -> None:
    tastes = Tastes(np.array([[1.0, 0.0], [0.0, 2.0]], np.float32), np.eye(3, 2, dtype=np.float32), {"ann": 1})
    assert tastes.scores(asked("ann", "bob", None)).tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 0]]
    passed = Passed(USERS, ITEMS, CLICKED, 3, {"ann": 0, "new": 7})
    known, new, nobody = passed.scores(asked("ann", "new", None)).tolist()
    assert known == pytest.approx([0, -np.log(2), -np.log(2)]) and new == nobody == [0, 0, 0]
