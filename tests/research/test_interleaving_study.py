"""The study of interleaving: its draft of many lists is that of one list, and users needed are those by hand."""

from __future__ import annotations

import numpy as np

from adagrpo.experiments.interleaving import team_draft
from research.interleaving.measure import Visits, drafted, needed, visits


def test_many_drafts_are_each_that_of_one_list() -> None:
    draw = np.random.default_rng(0)
    rankings = np.stack([np.stack([draw.permutation(8), draw.permutation(8)]) for _ in range(50)])
    flips = draw.random((50, 5)) < 0.5
    items, teams = drafted(rankings, flips, 5)
    for row in range(50):
        one = team_draft(rankings[row, 0].tolist(), rankings[row, 1].tolist(), 5, iter(flips[row].tolist()))
        assert teams[row].tolist() == [arm for arm, _ in one]
        assert items[row].tolist() == [rankings[row, arm, place] for arm, place in one]


def test_users_needed_by_hand() -> None:
    seen = Visits(
        np.array([0.0, 2.0]), np.array([1.0, 3.0]), np.array([[0.0, 2.0], [1.0, 1.0], [0.0, 0.0]]), (1.0, 2.0)
    )
    ab, mixed = needed(seen)
    z = 1.959964 + 0.841621
    np.testing.assert_allclose(ab, 4 * 2.0 * z**2)
    np.testing.assert_allclose(mixed, 0.125 * (z / 0.25) ** 2 / (2 / 3))


def test_alike_arms_share_the_clicks() -> None:
    draw = np.random.default_rng(1)
    seen = visits(draw.uniform(0, 0.6, (50, 30)), 2000, 0.0, draw)
    total = seen.mixed.sum(1)
    shares = seen.mixed[total > 0, 1] / total[total > 0]
    assert abs(shares.mean() - 0.5) < 4 * shares.std() / np.sqrt(len(shares))
    assert abs(seen.expected[0] - seen.expected[1]) < 0.05
