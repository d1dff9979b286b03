from __future__ import annotations

import pytest

from adagrpo.diagnosis import CellTest, decide
from adagrpo.diagnosis.verdict import strength_of
from adagrpo.statistics import Interval


def gain(p: float) -> Interval:
    return Interval(0.1, 0.05, 0.15, p)


def loss(p: float) -> Interval:
    return Interval(-0.1, -0.15, -0.05, p)


def cells(first: Interval, *rest: Interval) -> list[CellTest]:
    return [CellTest("all cases", first), *(CellTest(f"cell {i}", test) for i, test in enumerate(rest))]


ORDERS = gain(0.5)


def test_a_gain_over_all_cases_is_used_however_the_reward_orders_alone() -> None:
    for orders in (gain(0.0001), ORDERS, loss(0.5)):
        actual = decide(cells(gain(0.02), gain(0.9)), orders)
        assert (actual.decision, actual.strength, actual.where) == ("use", "some", ("all cases",))
        assert actual.cell_p == pytest.approx((0.04, 1.0)) and not actual.inverted
    assert decide(cells(gain(0.0005)), ORDERS).strength == "strong"


def test_all_cases_have_half_the_level_however_many_cells_there_are() -> None:
    assert decide(cells(gain(0.025), *[gain(0.9)] * 50), ORDERS).decision == "use"
    assert decide(cells(gain(0.026), *[gain(0.9)] * 50), ORDERS).decision == "do_not_use"


def test_a_gain_in_a_cell_alone_is_used_there() -> None:
    actual = decide(cells(gain(0.5), gain(0.012), gain(0.9)), ORDERS)
    assert (actual.decision, actual.strength, actual.where) == ("use", "some", ("cell 0",))
    # 2 · 2 · 0.013 is above the level
    assert decide(cells(gain(0.5), gain(0.013), gain(0.9)), ORDERS).decision == "do_not_use"


def test_a_loss_is_no_gain_however_sure() -> None:
    actual = decide(cells(loss(0.0005), loss(0.0005)), ORDERS)
    assert (actual.decision, actual.strength) == ("do_not_use", "strong")


def test_a_decision_for_want_of_evidence_has_none() -> None:
    for undecided in (gain(0.9), loss(0.9), gain(1.0)):
        actual = decide(cells(undecided), ORDERS)
        assert (actual.decision, actual.strength) == ("do_not_use", "none")


@pytest.mark.parametrize(
    ("orders", "inverted"), [(loss(0.001), True), (loss(0.0011), False), (gain(0.0001), False), (loss(1.0), False)]
)
def test_a_reward_is_inverted_where_it_orders_worse_than_chance_beyond_doubt(orders: Interval, inverted: bool) -> None:
    assert decide(cells(gain(0.9)), orders).inverted is inverted


def test_words_have_their_ends() -> None:
    words = [strength_of(0.1, p) for p in (0.001, 0.0011, 0.05, 0.051)]
    assert words == ["strong", "some", "some", "none"]
    assert [strength_of(-0.1, p) for p in (0.0001, 0.05, 0.051)] == ["against", "against", "none"]
    assert strength_of(0.0, 0.0) == "none"
