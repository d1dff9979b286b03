"""The tables of the closed loop, from rows written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from research.closed_loop.calibrate import exponent, of_feed, of_slots
from research.closed_loop.loop_summary import loop_chart
from research.closed_loop.plan import LoopPlan, read_loop_plan
from research.closed_loop.tables import alone, canaries, claims, outcomes, signs, trials, written

STUDY = Path(__file__).parents[2] / "research" / "closed_loop"


@pytest.fixture
def plan() -> LoopPlan:
    return LoopPlan.model_validate(
        {
            "name": "p",
            "recipe": "r.yaml",
            "worlds": {"w": {"seed": 1}},
            "markets": {"none": {}, "one": {"arms": ["nll"]}},
            "rounds": 2,
        }
    )


def row(market: str, number: int, utility: float, reward: float = 0.0, hits: float = 0.0) -> dict[str, Any]:
    arm = "start" if market == "none" else "nll"
    content = {"world": "w", "market": market, "arm": arm, "round": number, "utility": utility, "coverage": 0.5}
    content |= {"gini": 0.25, "new_hallucination@10": 0.125, "misordered_q1": 0.5, "misordered_q4": 0.375}
    return content | {"new_mean_reward@10": reward, "old_mean_reward@10": 0.0, "new_hr@10": hits, "old_hr@10": 0.0}


def rows() -> list[dict[str, Any]]:
    none = [row("none", number, 0.2) for number in range(3)]
    return [*none, row("one", 0, 0.2), row("one", 1, 0.1, reward=1.0, hits=1.0), row("one", 2, 0.15, reward=1.0)]


@pytest.mark.parametrize("name", ["plan", "stationary"])
def test_the_plans_of_the_study_are_plans(name: str) -> None:
    found, config = read_loop_plan(STUDY / f"{name}.yaml")
    assert found.rounds == 10 and len(found.worlds) == 3 and config.data.marketplace is not None


def test_claims_count_rounds_whose_reward_rose_and_utility_fell(plan: LoopPlan) -> None:
    assert claims(plan, rows()).rows == (("one", "nll", "2", "2", "1", "1", "1"),)


def last(market: str, arm: str, difference: float) -> dict[str, Any]:
    content = {"market": market, "arm": arm, "against": "none", "round": "last", "difference": difference}
    return content | {"low": difference - 0.1, "high": difference + 0.1}


def test_outcomes_are_of_the_last_round(plan: LoopPlan) -> None:
    found = outcomes(plan, rows(), [last("one", "nll", -0.25)]).rows
    assert found[0] == ("none", "start", "-", "-", "50 %", "0.25", "12 %", "50 %", "38 %")
    assert found[1][:4] == ("one", "nll", "-25.0 % (-35.0 to -15.0)", "-")


def test_signs_have_their_first_day() -> None:
    seen = {"world": "w", "market": "one", "arm": "nll", "days": 6, "harmed": 9}
    seen |= {"reward_up_feedback_down": None, "feedback_down": 7, "calibration": 8, "concentration": 6}
    seen |= {f"{name}_days": 1 for name in ("reward_up_feedback_down", "feedback_down", "calibration", "concentration")}
    other = seen | {"world": "x", "harmed": None}
    assert signs([seen, other]).rows == (("one", "nll", "9, -", "-, -", "7, 7", "8, 8", "6, 6"),)


def test_tests_within_a_market_say_what_they_see_and_what_the_arms_do_alone() -> None:
    content = {"name": "p", "recipe": "r.yaml", "worlds": {"w": {"seed": 1}}, "rounds": 2}
    markets = {"none": {}, "one": {"arms": ["nll"]}, "ab": {"arms": ["nll", "grpo"]}}
    found = alone(
        LoopPlan.model_validate(content | {"markets": markets}), [last("one", "nll", 0.5), last("ab", "nll", 0.25)]
    )
    assert found.rows == (
        ("nll", "+50.0 % (+40.0 to +60.0)", "+25.0 % (+15.0 to +35.0)"), ("grpo", "-", "-")
    )  # fmt: skip
    row = {"world": "w", "worth": "clicked", "users": 1000, "difference": -0.2, "low": -0.3, "high": -0.1}
    assert trials([row, row | {"high": 0.1}]).rows == (
        ("w", "clicked", "1,000", "-20.0 % (-30.0 to -10.0)", "worse"),
        ("w", "clicked", "1,000", "-20.0 % (-30.0 to +10.0)", "unclear"),
    )


def test_canaries_count_what_was_stopped_and_what_was_lost() -> None:
    markets = {"none": {}, "first": {"arms": ["grpo"], "canary": {"share": 0.1}}}
    content = {"name": "p", "recipe": "r.yaml", "worlds": {"w": {"seed": 1}}, "rounds": 2, "markets": markets}
    off = dict.fromkeys(("reward_up_feedback_down", "feedback_down", "calibration", "concentration"))
    one = {"market": "first", "stopped": True, "truth": -0.3, "lost": 0.015, **off, "calibration": 0}
    two = {"market": "first", "stopped": False, "truth": -0.1, "lost": 0.05, **off}
    ends = last("first", "all", 0.0)
    assert canaries(LoopPlan.model_validate(content), [one, two], [ends]).rows == (
        ("first", "2", "0", "0", "1", "0", "1", "-20.0 %", "1.5 %", "+0.0 % (-10.0 to +10.0)"),
    )


def test_the_page_and_the_charts_are_what_the_rows_say() -> None:
    for path, text in written().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_the_chart_has_a_line_a_market(plan: LoopPlan) -> None:
    against = [{"market": "one", "arm": "nll", "round": 1, "difference": -0.1, "low": None, "high": None}]
    assert loop_chart(against, plan, ["one"], "a title").count("one") >= 1


def test_places_of_a_feed_are_those_of_a_session_and_the_exponent_is_of_the_fall() -> None:
    times = [0, 60_000, 120_000, 180_000, 10_000_000]
    log = pl.DataFrame(
        {
            "user_id": [1] * 5,
            "timestamp": times,
            "clicked": [True, False, True, False, True],
            "play_time_ms": [2000, 0, 4000, 0, 8000],
        }
    )
    found = of_feed(log)  # the last one is a session of its own, and too short
    assert [(one["place"], one["click_rate"], one["impressions"]) for one in found] == [
        (place, rate, 1) for place, rate in enumerate((1.0, 0.0, 1.0, 0.0))
    ]
    bandit = pl.DataFrame({"policy": ["random", "random", "bts"], "position": [1, 2, 1], "click": [1, 0, 1]})
    assert [one["click_rate"] for one in of_slots(bandit)] == [1.0, 0.0]
    assert exponent([1.0, 0.5, 1 / 3]) == pytest.approx(1.0)
