from __future__ import annotations

import pytest

from adagrpo.diagnosis import CellTest, ThresholdTest, decide
from adagrpo.evaluation.statistics import Interval


def gain(p: float) -> Interval:
    return Interval(0.1, 0.05, 0.15, p)


def loss(p: float) -> Interval:
    return Interval(-0.1, -0.15, -0.05, p)


def cells(first: Interval, *rest: Interval) -> list[CellTest]:
    return [CellTest("all cases", first), *(CellTest(f"cell {i}", test) for i, test in enumerate(rest))]


GOOD = [ThresholdTest(0.5, 0.95, 100, (gain(0.001), gain(0.001)))]


def test_use_needs_a_gain_over_all_cases_and_thresholds_that_pass() -> None:
    actual = decide(cells(gain(0.02), gain(0.9)), GOOD, (0.5, 0.95))
    assert (actual.decision, actual.tau, actual.q_min, actual.where) == ("use", 0.5, 0.95, ("all cases",))
    assert actual.cell_p == pytest.approx((0.04, 1.0)) and actual.threshold_p == (0.001,)


def test_all_cases_have_half_the_level_however_many_cells_there_are() -> None:
    assert decide(cells(gain(0.025), *[gain(0.9)] * 50), GOOD, (0.5, 0.95)).decision == "use"
    assert decide(cells(gain(0.026), *[gain(0.9)] * 50), GOOD, (0.5, 0.95)).decision == "do_not_use"


def test_a_gain_in_a_cell_alone_is_for_re_ranking_there() -> None:
    actual = decide(cells(gain(0.5), gain(0.012), gain(0.9)), GOOD, (0.5, 0.95))
    assert (actual.decision, actual.where, actual.tau) == ("rerank_only", ("cell 0",), None)
    # 2 · 2 · 0.013 is above the level
    assert decide(cells(gain(0.5), gain(0.013), gain(0.9)), GOOD, (0.5, 0.95)).decision == "do_not_use"


def test_a_loss_is_no_gain_however_sure() -> None:
    assert decide(cells(loss(0.0005), loss(0.0005)), GOOD, (0.5, 0.95)).decision == "do_not_use"


@pytest.mark.parametrize("bad", [(gain(0.06), gain(0.001)), (gain(0.001), loss(0.001)), (gain(0.001), gain(1.0))])
def test_every_test_of_a_threshold_must_pass(bad: tuple[Interval, ...]) -> None:
    actual = decide(cells(gain(0.001)), [ThresholdTest(0.5, 0.95, 100, bad)], (0.5, 0.95))
    assert actual.decision == "rerank_only" and actual.tau is None


def test_the_configured_thresholds_are_taken_if_they_pass_else_what_admits_most() -> None:
    grid = [ThresholdTest(0.5, q, n, (gain(0.001),)) for q, n in ((0.8, 300), (0.9, 200), (0.95, 100))]
    assert decide(cells(gain(0.001)), grid, (0.5, 0.95)).q_min == 0.95
    grid[2] = ThresholdTest(0.5, 0.95, 100, (gain(0.3),))
    assert decide(cells(gain(0.001)), grid, (0.5, 0.95)).q_min == 0.8


def test_thresholds_are_a_family() -> None:
    """0.03 passes alone and not among three."""
    one = ThresholdTest(0.5, 0.95, 100, (gain(0.03),))
    assert decide(cells(gain(0.001)), [one], (0.5, 0.95)).decision == "use"
    others = [ThresholdTest(0.5, q, 100, (gain(0.9),)) for q in (0.8, 0.9)]
    actual = decide(cells(gain(0.001)), [one, *others], (0.5, 0.95))
    assert actual.decision == "rerank_only" and actual.threshold_p == pytest.approx((0.09, 1.0, 1.0))
