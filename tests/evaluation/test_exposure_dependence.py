"""Exchanged pairs tell a shop that shows each his own from one that shows the same to all."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from adagrpo.evaluation import exposure_dependence
from adagrpo.evaluation.exposure_dependence import Exchanges, exchanged, independent, weights_of_shown


def test_shown_items_of_two_visits_in_a_row_are_paired_but_for_what_either_had() -> None:
    rows = [(0, 1, 5), (0, 2, 5), (1, 3, 6), (1, 4, 7), (2, 5, 8), (0, 5, 9), (2, 6, 10)]  # user, item, time
    shown = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    had = pl.DataFrame({"user": [1], "item": [1]})
    pairs = exchanged(shown, had, np.random.default_rng(0))
    # visits: 0 at 5, 1 at 6 and 7; 2 at 8, 0 at 9 (both item 5: nothing to exchange); 2 at 10 has no second one
    assert pairs.users.tolist() == [[0, 1]] and pairs.visits.tolist() == [0]  # the pair of item 1, which 1 had, is out
    assert pairs.items[0, 0] == 2 and pairs.items[0, 1] in (3, 4)


def test_what_either_was_shown_before_is_not_paired() -> None:
    rows = [(0, 1, 1), (1, 2, 2), (0, 3, 3), (0, 4, 3), (1, 1, 4), (1, 5, 4)]  # user, item, time
    shown = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    for seed in range(5):  # 0 was shown 1 at first, so the second visit of 1 pairs 5 alone
        pairs = exchanged(shown, shown.select("user", "item").head(0), np.random.default_rng(seed))
        found = dict(zip(pairs.visits.tolist(), pairs.items.tolist(), strict=True))
        assert found[0] == [1, 2] and found[1] in ([3, 5], [4, 5]) and len(found) == 2
    nothing = exchanged(shown.head(0), shown.select("user", "item"), np.random.default_rng(0))
    known = exchanged(shown, shown.select("user", "item"), np.random.default_rng(0))
    assert len(nothing.users) == len(known.users) == 0


def test_no_dependence_is_found_where_who_comes_often_likes_what_is_shown_often() -> None:
    """All are shown popular items by chance; what was shown before is no row, so who comes often has few such rows."""
    draw = np.random.default_rng(0)
    popular = draw.normal(0, 1, 60)
    rows = set[tuple[int, int]]()
    times = []
    for time in range(6000):
        often = draw.random() < 0.5
        user = int(draw.integers(20)) if often else int(draw.integers(20, 220))
        for item in np.argsort(-popular - draw.gumbel(size=60))[:5].tolist():
            if (user, item) not in rows:
                rows.add((user, item))
                times.append((user, item, time))
    shown = pl.DataFrame(times, schema=["user", "item", "timestamp"], orient="row")
    liking = np.where(np.arange(220)[:, None] < 20, popular, -popular)
    pairs = exchanged(shown, shown.select("user", "item").head(0), np.random.default_rng(0))
    shares = pairs.happened(liking[pairs.users[:, :, None], pairs.items[:, None, :]])
    assert abs(shares.mean() - 0.5) < 3 * shares.std() / len(shares) ** 0.5


def test_visits_of_all_times_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposure_dependence, "MOST_PAIRS", 10)
    shown = pl.DataFrame({"user": [0, 1] * 100, "item": range(200), "timestamp": range(200)})
    visits = exchanged(shown, shown.select("user", "item").head(0), np.random.default_rng(0)).visits
    assert len(visits) == 10 and visits.min() < 30 and visits.max() > 70


def test_a_list_prefers_what_happened_or_its_exchange() -> None:
    pairs = Exchanges(np.tile([0, 1], (4, 1)), np.tile([2, 3], (4, 1)), np.array([7, 7, 8, 9]))
    scores = np.zeros((4, 2, 2))  # by pair, user and item
    scores[0] = [[2, 1], [0, 0]]  # the first user prefers his own, the second neither
    scores[1] = [[1, 2], [1, 2]]  # one each: a tie
    scores[2] = [[1, 2], [2, 1]]  # both prefer the exchange
    scores[3] = [[-np.inf, -np.inf], [-np.inf, 0]]  # items that a list does not hold
    assert pairs.happened(scores).tolist() == [0.75, 0.0, 1.0]


def test_independence_is_found_or_not() -> None:
    draw = np.random.default_rng(0)
    even, told = (draw.binomial(1, share, 20_000).astype(float) for share in (0.5, 0.55))
    found, intervals = independent({"item_knn": even})
    assert found and intervals["item_knn"].low < 0.5 < intervals["item_knn"].high < 0.52
    assert not independent({"item_knn": even, "ranker": told})[0]  # one list tells
    assert not independent({"item_knn": even[:500]})[0]  # too few to say so
    assert not independent({"item_knn": even[:19]})[0] and not independent({})[0]


def test_lists_without_a_preference_say_nothing_of_independence() -> None:
    same = np.full(20_000, 0.5)
    few = np.concatenate([np.tile([0.0, 1.0], 9), [1.0], same])  # 19 visits with a preference, and 20
    assert not independent({"item_knn": same})[0] and not independent({"item_knn": few})[0]
    assert independent({"item_knn": np.concatenate([[0.0], few])})[0]


def test_no_item_that_was_shown_seldom_rules() -> None:
    items = np.array([1] * 8 + [2] * 4 + [3])  # the median item was shown four times
    assert weights_of_shown(items).tolist() == [1 / 8] * 8 + [1 / 4] * 5
