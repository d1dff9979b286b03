"""The tables of the closed loop, from rows written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from research.closed_loop.calibrate import exponent, of_feed, of_slots
from research.closed_loop.plan import LoopPlan, read_loop_plan
from research.closed_loop.tables import claims

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
