"""The study of leaks: its taste reward against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo.data.simulation.marketplace import Marketplace, simulate
from adagrpo.errors import UserError
from research.leaks.taste import LAST, taste_of


def test_the_taste_reward_orders_items_as_the_true_utility_of_the_moment_does() -> None:
    truth = simulate(Marketplace(users=40, items=150, steps=25, slate_size=10, noise=2)).truth
    score = taste_of(truth)
    users, items = np.divmod(truth.purchases, len(truth.item_ids))
    rows = np.flatnonzero(users == np.bincount(users).argmax())
    history, bought = items[rows[:-1]], items[rows[-1:]]
    assert len(history) >= LAST  # long enough for no other user to have the same
    candidates = np.setdiff1d(np.arange(len(truth.item_ids)), items[rows])
    ids = [[truth.item_ids[item] for item in some] for some in (history, candidates)]
    scores = np.array(score([ids[0]], [ids[1]])[0])
    utility = truth.utility_before(users[rows[-1:]], bought, candidates[None])[0]
    assert np.argsort(scores).tolist() == np.argsort(utility).tolist()
    with pytest.raises(UserError, match="no user has a history that ends with i00000"):
        score([["i00000"] * 6], [ids[1]])
