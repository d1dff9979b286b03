"""Place weights and the pseudo-inverse against enumeration of all lists, and unbiased where a reward is a sum."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from adagrpo.off_policy import (
    cascade,
    ips,
    item_position,
    overlap,
    position_propensities,
    pseudo_inverse_weights,
    snips,
)
from adagrpo.off_policy.pseudo_inverse import count_lists

RNG = np.random.default_rng(3)
ITEMS, PLACES = 5, 3
LISTS = np.array(list(itertools.permutations(range(ITEMS), PLACES)))
LOGGED, TARGET = (np.log(RNG.dirichlet(np.full(ITEMS, 2.0))) for _ in range(2))


def chance(log_probs: np.ndarray, items: tuple[int, ...]) -> float:
    """Of a list, one item after the other."""
    left, result = 1.0, 1.0
    for item in items:
        result *= math.exp(log_probs[item]) / left
        left -= math.exp(log_probs[item])
    return result


def marginal(log_probs: np.ndarray, place: int, item: int) -> float:
    """Of an item at a place, over all lists."""
    return sum(chance(log_probs, items) for items in map(tuple, LISTS) if items[place] == item)


MU, PI = (np.array([chance(of, tuple(items)) for items in LISTS]) for of in (LOGGED, TARGET))


def test_the_chance_of_a_place_is_the_sum_over_all_lists() -> None:
    found = position_propensities(np.tile(LOGGED, (len(LISTS), 1)), LISTS)
    wanted = [[marginal(LOGGED, place, item) for place, item in enumerate(items)] for items in LISTS]
    np.testing.assert_allclose(found, wanted, rtol=1e-7)


def test_shorter_lists_and_items_that_are_never_drawn() -> None:
    closed = np.append(LOGGED, -np.inf)
    found = position_propensities(np.stack([closed, closed]), np.array([[2, 0, -1], [1, 3, 4]]))
    wanted = [
        [marginal(LOGGED, 0, 2), marginal(LOGGED, 1, 0), 1.0],
        [marginal(LOGGED, k, i) for k, i in enumerate([1, 3, 4])],
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-7)
    with pytest.raises(ValueError, match="more places than there are items"):
        position_propensities(np.array([[0.0, -np.inf]]), np.array([[0, 1]]))


def test_places_of_a_sharp_policy() -> None:
    """One item has nearly all: what is left is drawn among the rest, of 1e-9 and below."""
    sharp = np.log(np.array([[1 - 3e-9, 1.5e-9, 1e-9, 0.5e-9]]))
    np.testing.assert_allclose(position_propensities(sharp, np.array([[0, 1]])), [[1.0, 0.5]], rtol=1e-6)


def ratios() -> np.ndarray:
    """(S, K) the weight of each place of each list."""
    target, logged = (position_propensities(np.tile(of, (len(LISTS), 1)), LISTS) for of in (TARGET, LOGGED))
    return target / logged


def additive(items: np.ndarray) -> np.ndarray:
    """(K,) the reward of each place, of the item and the place alone."""
    values = np.random.default_rng(9).random((PLACES, ITEMS))
    return values[np.arange(PLACES), items]


def test_both_are_unbiased_where_a_reward_is_a_sum_over_places() -> None:
    rewards = np.array([additive(items) for items in LISTS])  # (S, K)
    truth = float(PI @ rewards.sum(1))
    whole = pseudo_inverse_weights(TARGET, LOGGED, LISTS)
    assert MU @ (whole * rewards.sum(1)) == pytest.approx(truth, rel=1e-9)
    assert MU @ whole == pytest.approx(1.0)
    places = ratios()
    assert MU @ (places * rewards).sum(1) == pytest.approx(truth, rel=1e-6)
    # and both spread less than the weight of the whole list
    spread = MU @ (PI / MU * rewards.sum(1)) ** 2
    assert MU @ (whole * rewards.sum(1)) ** 2 < spread and MU @ (places * rewards).sum(1) ** 2 < spread


def test_neither_is_right_where_an_item_changes_what_another_one_brings() -> None:
    pair = (LISTS[:, 0] == 0) & (LISTS[:, 1] == 1)  # the reward of this pair alone is no sum
    truth = float(PI @ pair)
    whole = pseudo_inverse_weights(TARGET, LOGGED, LISTS)
    assert abs(MU @ (whole * pair) - truth) > 0.01
    assert MU @ (PI / MU * pair) == pytest.approx(truth)


def test_the_pseudo_inverse_is_the_sum_in_the_list_weight() -> None:
    """A slow twin: of all sums over places, the one nearest to π / μ where lists come as μ draws them."""
    cells = np.zeros((len(LISTS), PLACES * ITEMS))
    for row, items in enumerate(LISTS):
        for place, item in enumerate(items):
            cells[row, place * ITEMS + item] = 1.0
    root = np.sqrt(MU)[:, None]
    nearest = np.linalg.lstsq(root * cells, root[:, 0] * PI / MU, rcond=None)[0]
    np.testing.assert_allclose(pseudo_inverse_weights(TARGET, LOGGED, LISTS), cells @ nearest, rtol=1e-6)


def test_what_cannot_be_counted_or_was_never_shown_is_refused() -> None:
    many = np.full(100, -np.log(100))
    with pytest.raises(ValueError, match=r"100 items make 970,200 lists of 3; at most 20,000 count"):
        pseudo_inverse_weights(many, many, np.array([[0, 1, 2]]))
    assert count_lists(100, 3) == 970_200
    shut = LOGGED.copy()
    shut[4] = -np.inf
    with pytest.raises(ValueError, match="the target draws an item"):
        pseudo_inverse_weights(TARGET, shut, LISTS[:1])
    with pytest.raises(ValueError, match="a list holds an item"):
        pseudo_inverse_weights(shut, shut, np.array([[4, 0, 1]]))


def test_a_log_drawn_from_one_policy_covers_what_another_would_have_had() -> None:
    draw = np.random.default_rng(1)
    rows = draw.choice(len(LISTS), 4000, p=MU / MU.sum())
    chances = np.array([additive(items) for items in LISTS])[rows]
    clicks = (draw.random(chances.shape) < chances).astype(float)
    truth = float(PI @ np.array([additive(items).sum() for items in LISTS]))
    whole = pseudo_inverse_weights(TARGET, LOGGED, LISTS[rows])
    assert (whole < 0).any() and overlap(whole, signed=True).problem is None
    with pytest.raises(ValueError, match="weights must be"):
        overlap(whole)
    for found in (snips(clicks.sum(1), whole), ips(clicks.sum(1), whole), item_position(clicks, ratios()[rows])):
        assert found.low < truth < found.high
    served = item_position(clicks, np.ones_like(clicks))
    assert served.value == pytest.approx(clicks.sum(1).mean()) and served.effective_size == pytest.approx(4000)
    one = np.log(draw.random((4000, 1)))
    alike = item_position(clicks[:, :1], np.exp(one)), cascade(clicks[:, :1], one, np.zeros_like(one))
    assert alike[0] == pytest.approx(alike[1])
    with pytest.raises(ValueError, match="must be \\(N, K\\)"):
        item_position(clicks, ratios())
