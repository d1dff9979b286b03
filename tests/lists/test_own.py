"""A user's own items, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adagrpo.lists.own import OwnDue, OwnItems, OwnRecent, OwnSince
from adagrpo.lists.query import Query, past_of_queries, query_of
from adagrpo.lists.sources import FLOOR, NearestItems, click_through, recent_shares, together
from adagrpo.types import Cases, Histories, Ragged

# item 2 in three baskets, 0 in one, 1 in one; nothing of 3 and 4, of which 4 is the more popular
BOUGHT = Query([2, 0, 2, 1, 2], baskets=[0, 0, 3, 3, 7], days=[0.0, 0.0, 10.0, 10.0, 30.0], now=50.0)
POPULARITY = np.array([5, 1, 1, 2, 9])


def histories(*queries: Query) -> Histories:
    longest = max(len(query.history) for query in queries)
    items = torch.zeros(len(queries), longest, dtype=torch.int64)
    lengths = torch.tensor([len(query.history) for query in queries])
    return Histories(items, lengths, past=past_of_queries(queries, grouped=True))


def test_past_counts_baskets_from_the_last_and_days_until_now() -> None:
    past = past_of_queries([BOUGHT, Query([4])], grouped=True)
    assert past.baskets[0].tolist() == [2, 2, 1, 1, 0]
    assert past.days[0].tolist() == [50, 50, 40, 40, 20] and past.days[1].isnan().all()
    assert past.items[1].tolist() == [4, -1, -1, -1, -1]
    assert past_of_queries([Query([4, 4, 3])], grouped=False).baskets.tolist() == [[2, 1, 0]]


def test_a_run_without_baskets_reads_no_times_since_none_were_measured() -> None:
    past = past_of_queries([BOUGHT], grouped=False)
    assert past.baskets.tolist() == [[4, 3, 2, 1, 0]] and past.days.isnan().all()


def test_own_orders_by_count_then_recency_then_popularity() -> None:
    scores = OwnItems(POPULARITY).scores(histories(BOUGHT))[0]
    together = Query([0, 4, 1, 4], baskets=[0, 0, 1, 1])
    assert OwnItems(POPULARITY).scores(histories(together))[0].argsort(descending=True).tolist() == [4, 1, 0, 3, 2]
    equal = OwnItems(POPULARITY).scores(histories(Query([1, 3, 0], baskets=[0, 0, 0])))[0]
    assert equal.argsort(descending=True).tolist() == [0, 3, 1, 4, 2]  # of one basket: by popularity, none tied
    assert len(equal.unique()) == 5
    assert scores.argsort(descending=True).tolist() == [2, 1, 0, 4, 3]
    assert OwnItems(POPULARITY).feature(scores).tolist() == pytest.approx([math.log(2), math.log(2), math.log(4), 0, 0])


def test_own_items_decay_by_basket_and_by_day() -> None:
    both = histories(BOUGHT, Query([4]))
    recent = OwnRecent(5).scores(both)
    assert recent[0, :3].tolist() == pytest.approx([0.64, 0.8, 0.64 + 0.8 + 1])
    assert recent[0, 3] == -torch.inf
    since = OwnSince(5).scores(both)
    assert since[0].tolist() == pytest.approx([1 / (1 + 50 / 30), 1 / (1 + 40 / 30), 1 / (1 + 20 / 30), 0, 0])
    assert since[1].tolist() == [0] * 5  # at an unknown time
    due = OwnDue(5).scores(both)
    # item 2 came 50, 40 and 20 days ago: a gap of 15 days on average, and 20 have passed
    assert due[0].tolist() == pytest.approx([0, 0, 16 / 21, 0, 0], abs=1e-6)
    assert due[1].tolist() == [0] * 5


def test_scores_do_not_depend_on_the_batch() -> None:
    for source in (OwnItems(POPULARITY), OwnRecent(5), OwnSince(5), OwnDue(5)):
        alone, among = source.scores(histories(BOUGHT)), source.scores(histories(Query([4] * 9), BOUGHT))
        assert torch.allclose(alone[0], among[1], atol=1e-6)


def test_what_is_due_does_not_depend_on_what_is_known_of_others() -> None:
    undated, old = Query([2, 2]), Query([3, 3], baskets=[0, 1], days=[-1e7, 0.0], now=50.0)
    source = OwnDue(5)
    assert source.scores(histories(undated, BOUGHT))[0].tolist() == source.scores(histories(undated))[0].tolist()
    assert source.scores(histories(BOUGHT, old))[0].tolist() == source.scores(histories(BOUGHT))[0].tolist()


def test_items_of_one_basket_are_near_and_a_basket_weighs_one() -> None:
    training = Ragged(np.array([0, 1, 2, 0, 1], np.int32), np.array([0, 3, 5]), baskets=np.array([0, 0, 1, 0, 0]))
    near = together(training, 3)
    assert near.toarray().round(6).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    found = NearestItems(near, FLOOR).scores(histories(Query([0, 2, 0], baskets=[0, 0, 1])))
    assert found[0].tolist() == [-torch.inf, pytest.approx(0.7 * 0.5 + 1), -torch.inf]


def test_recent_shares_and_click_through_by_hand() -> None:
    # a half-life of 5 % of 40 days: two days
    shares = recent_shares(np.array([0, 0, 1]), np.array([40.0, 2.0, 0.0]), 3)
    assert shares.tolist() == pytest.approx(
        [(0.5 + 2**-20 + 1) / (4.5 + 2**-20), 2 / (4.5 + 2**-20), 1 / (4.5 + 2**-20)]
    )
    rates = click_through(np.array([0, 0, 1]), np.array([True, False, False]), 3)
    mean = 2 / 5
    assert rates.tolist() == pytest.approx([(1 + 50 * mean) / 52, 50 * mean / 51, mean])


def test_the_query_of_a_case_holds_its_baskets_and_times() -> None:
    kept = Ragged(
        np.array([3, 1, 2], np.int32), np.array([0, 1, 3]), baskets=np.array([0, 0, 1]), days=np.array([1.0, 2, 5])
    )
    cases = Cases(np.array([4, 7]), kept, np.array([0, 0]), days=np.array([3.0, 8.0]))
    assert query_of(cases, 1) == Query([1, 2], baskets=[0, 1], days=[2.0, 5.0], now=8.0)
