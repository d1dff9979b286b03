"""Look-ups of the study of further features, on logs small enough to be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from adagrpo.types import Ragged
from research.decisions.look_ups import _column, _followers_at, _mean_of, _two_hops, table

LOGS = Ragged(np.array([0, 1, 2, 0, 2, 1], np.int32), np.array([0, 3, 5, 6]))


def test_followers_at_a_lag_are_those_of_one_sequence() -> None:
    assert np.argwhere(_followers_at(LOGS, 3, 2).toarray()).tolist() == [[0, 2]]
    assert _followers_at(LOGS, 3, 2)[0, 2] == pytest.approx(1 / np.sqrt(2))  # one of one, smoothed


def test_two_hops_walk_over_users() -> None:
    walk = _two_hops(LOGS, 3).toarray()
    # from 0: users of three and of two items, a half each; over the root of two users of 1 and of 2
    to_1, to_2 = (1 / 6) / np.sqrt(2), (1 / 6 + 1 / 4) / np.sqrt(2)
    assert walk[0, 1] / walk[0, 2] == pytest.approx(to_1 / to_2)
    assert not walk.diagonal().any()
    assert walk.max(axis=1).mean() == pytest.approx(1.0)


def test_a_column_summarises_the_history_for_each_candidate() -> None:
    near = sparse.csr_array(np.array([[0, 0.2, 0.4], [0.2, 0, 0.8], [0.4, 0.8, 0]], np.float32))
    histories, items = Ragged(np.array([0, 1], np.int32), np.array([0, 2])), np.array([[2, 0, -1]])
    last = np.exp(_column(near, histories, items, _mean_of(0), 0.1))
    assert last.tolist() == [pytest.approx([0.9, 0.3, 1.0])]  # no item: the logarithm 0
    before = np.exp(_column(near, histories, items, _mean_of(1), 0.1))
    assert before[0, :2].tolist() == pytest.approx([0.5, 0.1])
    far = np.exp(_column(near, histories, items, _mean_of(2), 0.1))
    assert far[0, :2].tolist() == pytest.approx([0.1, 0.1])  # shorter than the lag


def test_p_values_are_adjusted_within_a_set() -> None:
    gained = {"lag 2": [0.001, 0.0, 0.002, 0.03], "lag 3": [0.0, -0.001, 0.001, 0.9], "kept": [0.002, 0.001, 0.003, 0]}
    row = {"set": "shop", "cases": 1000, "ndcg@10": 0.1, "rule": ["lag 2"], "gained": gained}
    assert "| lag 2 | +1.0 (+0.0 to +2.0), p 0.060, kept |" in table([row])
    assert "| kept | +2.0 (+1.0 to +3.0) |" in table([row])
