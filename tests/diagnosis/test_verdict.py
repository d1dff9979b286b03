from __future__ import annotations

import pytest

from adagrpo.diagnosis import CellTest, ThresholdTest, decide
from adagrpo.diagnosis.verdict import strength_of
from adagrpo.evaluation.statistics import Interval


def gain(p: float) -> Interval:
    return Interval(0.1, 0.05, 0.15, p)


def loss(p: float) -> Interval:
    return Interval(-0.1, -0.15, -0.05, p)


def cells(first: Interval, *rest: Interval) -> list[CellTest]:
    return [CellTest("all cases", first), *(CellTest(f"cell {i}", test) for i, test in enumerate(rest))]


GOOD = [ThresholdTest(0.5, 0.95, 100, (gain(0.001), gain(0.001)))]
LEADS = gain(0.0009)


def test_use_needs_a_gain_over_all_cases_and_a_reward_that_leads_beyond_doubt() -> None:
    actual = decide(cells(gain(0.02), gain(0.9)), LEADS, GOOD, (0.5, 0.95))
    assert (actual.decision, actual.tau, actual.q_min, actual.where) == ("use", 0.5, 0.95, ("all cases",))
    assert actual.cell_p == pytest.approx((0.04, 1.0)) and actual.threshold_p == (0.001,)
    assert actual.strength == "some" and decide(cells(gain(0.0005)), LEADS, GOOD, (0.5, 0.95)).strength == "strong"


@pytest.mark.parametrize("leads", [gain(0.0011), gain(0.9), loss(0.0001)])
def test_a_reward_that_does_not_lead_is_for_re_ranking(leads: Interval) -> None:
    actual = decide(cells(gain(0.0001)), leads, GOOD, (0.5, 0.95))
    assert (actual.decision, actual.strength, actual.tau) == ("rerank_only", "strong", None)


def test_all_cases_have_half_the_level_however_many_cells_there_are() -> None:
    assert decide(cells(gain(0.025), *[gain(0.9)] * 50), LEADS, GOOD, (0.5, 0.95)).decision == "use"
    assert decide(cells(gain(0.026), *[gain(0.9)] * 50), LEADS, GOOD, (0.5, 0.95)).decision == "do_not_use"


def test_a_gain_in_a_cell_alone_is_for_re_ranking_there() -> None:
    actual = decide(cells(gain(0.5), gain(0.012), gain(0.9)), LEADS, GOOD, (0.5, 0.95))
    assert (actual.decision, actual.where, actual.tau) == ("rerank_only", ("cell 0",), None)
    assert actual.strength == "some"
    # 2 · 2 · 0.013 is above the level
    assert decide(cells(gain(0.5), gain(0.013), gain(0.9)), LEADS, GOOD, (0.5, 0.95)).decision == "do_not_use"


def test_a_loss_is_no_gain_however_sure() -> None:
    actual = decide(cells(loss(0.0005), loss(0.0005)), LEADS, GOOD, (0.5, 0.95))
    assert (actual.decision, actual.strength) == ("do_not_use", "strong")


def test_a_decision_for_want_of_evidence_has_none() -> None:
    for undecided in (gain(0.9), loss(0.9), gain(1.0)):
        actual = decide(cells(undecided), LEADS, GOOD, (0.5, 0.95))
        assert (actual.decision, actual.strength) == ("do_not_use", "none")


@pytest.mark.parametrize("bad", [(gain(0.06), gain(0.001)), (gain(0.001), loss(0.001)), (gain(0.001), gain(1.0))])
def test_thresholds_decide_nothing_but_which_gate_is_named(bad: tuple[Interval, ...]) -> None:
    actual = decide(cells(gain(0.001)), LEADS, [ThresholdTest(0.5, 0.95, 100, bad)], (0.5, 0.95))
    assert actual.decision == "use" and actual.tau is None


def test_the_configured_thresholds_are_taken_if_they_pass_else_what_admits_most() -> None:
    grid = [ThresholdTest(0.5, q, n, (gain(0.001),)) for q, n in ((0.8, 300), (0.9, 200), (0.95, 100))]
    assert decide(cells(gain(0.001)), LEADS, grid, (0.5, 0.95)).q_min == 0.95
    grid[2] = ThresholdTest(0.5, 0.95, 100, (gain(0.3),))
    assert decide(cells(gain(0.001)), LEADS, grid, (0.5, 0.95)).q_min == 0.8


def test_thresholds_are_a_family() -> None:
    """0.03 passes alone and not among three."""
    one = ThresholdTest(0.5, 0.95, 100, (gain(0.03),))
    assert decide(cells(gain(0.001)), LEADS, [one], (0.5, 0.95)).tau == 0.5
    others = [ThresholdTest(0.5, q, 100, (gain(0.9),)) for q in (0.8, 0.9)]
    actual = decide(cells(gain(0.001)), LEADS, [one, *others], (0.5, 0.95))
    assert actual.tau is None and actual.threshold_p == pytest.approx((0.09, 1.0, 1.0))


def test_words_have_their_ends() -> None:
    words = [strength_of(0.1, p) for p in (0.001, 0.0011, 0.05, 0.051)]
    assert words == ["strong", "some", "some", "none"]
    assert [strength_of(-0.1, p) for p in (0.0001, 0.05, 0.051)] == ["against", "against", "none"]
    assert strength_of(0.0, 0.0) == "none"
