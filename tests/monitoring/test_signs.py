"""The signs of a hacked reward: each comes on where it is planted, and none where nothing changes."""

from __future__ import annotations

import numpy as np
import pytest

from adagrpo.monitoring import SIGNS, DailySigns, SignRule, Visits, daily_signs, first_on, signs_against

RULE = SignRule(baseline=5, window=2)
DAYS, LISTS, ITEMS = 12, 150, 40


def visits(
    *, clicked: float = 0.3, predicted: float = 0.3, drawn: int = ITEMS, start: int = 5, seed: int = 0
) -> Visits:
    """Days of 150 lists, of which those from `start` on have other rates or fewer items."""
    rng = np.random.default_rng(seed)
    day = np.repeat(np.arange(DAYS), LISTS)
    late = day >= start
    chance = np.where(late, clicked, 0.3)
    items = np.array([rng.permutation(drawn if is_late else ITEMS)[:4] for is_late in late])
    expected = np.where(late, predicted, 0.3) / 4 + 0.005 * rng.normal(size=len(day))  # an item of four
    return Visits(day, (rng.random(len(day)) < chance).astype(float), expected, items)


def on(found: list[DailySigns]) -> set[str]:
    return {sign for look in found for sign in look.on}


def test_nothing_is_on_where_nothing_changes() -> None:
    found = daily_signs(visits(), RULE)
    assert [look.day for look in found] == list(range(5, 12))
    assert [look.lists for look in found] == [LISTS, *[2 * LISTS] * 6]
    assert on(found) == set()


def test_reward_up_and_feedback_down_is_the_sign_of_hacking() -> None:
    found = daily_signs(visits(clicked=0.12, predicted=0.4, start=7), RULE)
    assert first_on(found, "reward_up_feedback_down") in (7, 8)
    assert {"feedback_down", "calibration"} <= on(found)


def test_feedback_that_falls_with_the_reward_is_no_hacking() -> None:
    found = daily_signs(visits(clicked=0.12, predicted=0.12), RULE)
    assert "reward_up_feedback_down" not in on(found) and "calibration" not in on(found)
    assert first_on(found, "feedback_down") is not None


@pytest.mark.parametrize("predicted", [0.5, 0.1])
def test_calibration_is_on_in_either_direction(predicted: float) -> None:
    assert on(daily_signs(visits(predicted=predicted), RULE)) == {"calibration"}


def test_fewer_items_are_concentration() -> None:
    found = daily_signs(visits(drawn=25), RULE)
    assert on(found) == {"concentration"}
    assert first_on(found, "concentration") == 5


def test_errors_are_those_of_two_means_by_hand() -> None:
    day = np.array([0, 0, 0, 0, 1, 1])
    clicked, predicted = np.array([1.0, 0, 1, 0, 0, 0]), np.array([1.0, 3, np.nan, np.nan, 5, 7])
    look = daily_signs(Visits(day, clicked, predicted, np.zeros((6, 1), np.int64)), SignRule(1, 1, 1.1))[0]
    # of all six lists together, 4/15, and of the four predictions, 20/3; by their own they are 1/3 and 0, and 2 and 2
    assert look.feedback == pytest.approx(-0.5 / np.sqrt(4 / 15 * (1 / 4 + 1 / 2)))
    assert look.reward == pytest.approx((6 - 2) / np.sqrt(20 / 3 * (1 / 2 + 1 / 2)))
    assert (look.predicted, look.clicked, look.gini) == (6.0, 0.0, 0.0)
    assert SIGNS[0] in look.on


def test_lists_of_other_lengths_have_no_item_in_their_last_places() -> None:
    shorter = visits()
    items = shorter.items.copy()
    items[::3, 3] = -1
    assert on(daily_signs(shorter._replace(items=items), RULE)) == set()


def test_a_log_of_the_baseline_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="two lists in 30 days"):
        daily_signs(visits(), SignRule(baseline=30))


def test_false_alarms_by_chance_are_as_rare_as_the_rule_says() -> None:
    """Six markets that stand still, seven looks at each."""
    alarms = sum(len(look.on) for seed in range(6) for look in daily_signs(visits(seed=seed), RULE))
    assert alarms <= 3  # of 168 looks at a sign; overlapping windows come on together


@pytest.mark.slow  # 100 logs each
@pytest.mark.parametrize(("rate", "usual", "few"), [(0.02, 300, 30), (0.05, 50, 50), (0.1, 1000, 4)])
def test_windows_of_few_clicks_are_no_sign(rate: float, usual: int, few: int) -> None:
    """Few lists often have no click, and then no variance of their own: nothing changes in these 100 logs."""
    rng, alarms, seen = np.random.default_rng(7), 0, 0
    for _ in range(100):
        day = np.repeat(np.arange(17), [usual] * 7 + [few] * 10)
        clicked = (rng.random(len(day)) < rate).astype(float)
        nothing = np.full(len(day), np.nan)
        log = Visits(day, clicked, nothing, rng.integers(0, 50, (len(day), 3)))
        found = daily_signs(log, SignRule())
        alarms, seen = alarms + sum("feedback_down" in look.on for look in found), seen + len(found)
    assert alarms <= 0.003 * seen


def test_an_arm_is_held_against_others_of_the_same_days_alone() -> None:
    """Both lose feedback on day 5, the ranker expects more of both: only what the arm has otherwise is a sign."""
    others = visits(clicked=0.12, predicted=0.4, seed=1)
    assert "reward_up_feedback_down" in on(daily_signs(others, RULE))
    same = signs_against(visits(clicked=0.12, predicted=0.4, seed=2), others, RULE)
    assert [look.day for look in same] == list(range(DAYS)) and on(same) == set()
    hacked = signs_against(visits(clicked=0.12, predicted=0.6, drawn=25, seed=2), others, RULE)
    assert {"calibration", "concentration"} <= on(hacked) and first_on(hacked, "calibration") in (5, 6)
    late = signs_against(visits(seed=2).only(others.day > 9), others, RULE)
    assert [look.day for look in late] == [10, 11] and late[0].lists == LISTS
    with pytest.raises(ValueError, match="no such day"):
        signs_against(others.only(others.day < 3), others.only(others.day > 5))


def test_an_arm_errs_as_seldom_as_the_rule_says() -> None:
    rng = np.random.default_rng(0)
    found = []
    for seed in range(6):
        everybody = visits(seed=seed)
        mine = rng.random(len(everybody.day)) < 0.1
        found += signs_against(everybody.only(mine), everybody.only(~mine), RULE)
    assert sum(len(look.on) for look in found) <= 3  # of 288
