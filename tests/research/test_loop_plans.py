"""The closed loop: its plans, and what the simulator was calibrated by."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from research.closed_loop.calibrate import exponent, of_feed, of_slots
from research.closed_loop.plan import read_loop_plan

STUDY = Path(__file__).parents[2] / "research" / "closed_loop"


@pytest.mark.parametrize("name", ["plan", "stationary"])
def test_the_plans_of_the_study_are_plans(name: str) -> None:
    found, config = read_loop_plan(STUDY / f"{name}.yaml")
    assert found.rounds == 10 and len(found.worlds) == 3 and config.data.marketplace is not None


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
