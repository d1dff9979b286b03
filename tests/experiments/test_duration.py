"""How long an experiment takes, from the days before it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.experiments.duration import baselines, duration
from adagrpo.experiments.plan import DAY
from adagrpo.experiments.units import users_before
from adagrpo.exposures.exposure_store import EXPOSURE_SCHEMA, FEEDBACK_SCHEMA

from .two_arms import PLAN, changed, tables


def test_the_size_of_a_plan_needs_the_feedback_that_it_sums() -> None:
    plan = changed(metrics={"a": {"sum": "clik", "expected": 0.1}})
    with pytest.raises(UserError, match="no feedback of kind 'clik'; its kinds are click, dwell"):
        users_before(plan, *tables(10))


def test_the_power_of_a_plan_needs_no_days_before_those_that_it_reads() -> None:
    """A guardrail on the tail asks what was popular before the start, which no earlier day need say."""
    guarded = changed(guardrails={"tail": {"sum": "tail", "per": "impressions", "margin": 0.1}})
    (row,) = duration(baselines(guarded, users_before(guarded, *tables(200))))
    (alone,) = duration(baselines(PLAN, users_before(PLAN, *tables(200))))
    assert row == alone


def test_days_without_what_a_metric_sums_say_so() -> None:
    exposures, feedback = tables(200)
    later = feedback.filter(pl.col("time") >= PLAN.begins)
    with pytest.raises(UserError, match=r"metrics\.dwell: the days before the start have none of it"):
        baselines(PLAN, users_before(PLAN, exposures, later))


def new_users(days: int, a_day: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log of `days` days until 2026-11-01; each user comes once, at even distances, and every second one clicks."""
    steps = days * a_day
    shown = pl.DataFrame(
        {
            "request_id": [f"r{step}" for step in range(steps)],
            "time": datetime(2026, 11, 1, tzinfo=UTC).timestamp() - np.arange(steps)[::-1] * DAY / a_day,
            "slate": [["1"]] * steps,
            "user_hash": [f"u{step}" for step in range(steps)],
        }
    )
    exposures = pl.concat([pl.DataFrame(schema=EXPOSURE_SCHEMA), shown], how="diagonal")
    said = shown.select("request_id", "time", item=pl.lit("1"), kind=pl.lit("click"), value=pl.lit(None, pl.Float64))
    return exposures, said.filter(pl.Series(range(steps)) % 2 == 0).select(FEEDBACK_SCHEMA.names())


@pytest.mark.parametrize("start", ["2026-11-01", "2026-11-08", "2026-11-14", "2026-12-24"])
@pytest.mark.parametrize("logged", [3, 30])
def test_new_users_a_day_are_of_the_days_that_the_log_covers(start: str, logged: int) -> None:
    plan = changed(start=start, days_before=14, metrics={"clicks": {"sum": "click", "expected": 0.1}})
    earlier = users_before(plan, *new_users(logged, 100))
    sized = baselines(plan, earlier)
    assert earlier.days == pytest.approx(min(logged, 14), abs=0.011)  # the first of 100 a day comes after 1 / 100 day
    assert earlier.end == datetime(2026, 11, 1, tzinfo=UTC).timestamp()
    assert sized.users_a_day == pytest.approx(100, rel=0.01)
    assert sized.metrics["clicks"].mean == pytest.approx(0.5, rel=0.01)


def test_a_fall_is_sized_as_a_fall() -> None:
    sizes = []
    for better in ("up", "down"):
        metric = {"sum": "click", "better": better, "expected": 0.5, "mean": 1.0, "deviation": 1.0}
        (row,) = duration(changed(metrics={"a": metric}))
        sizes.append(row["users"])
    assert sizes[1] / sizes[0] == pytest.approx((np.log(1.5) / np.log(0.5)) ** 2, rel=0.02)
    with pytest.raises(ValueError, match="a fall of 1 is all of it"):
        changed(metrics={"a": {"sum": "click", "better": "down", "expected": 1.0}})


def test_less_than_a_day_of_a_log_says_nothing_of_a_day() -> None:
    exposures, feedback = new_users(1, 100)
    with pytest.raises(UserError, match=r"covers 0\.99 of the 7 days before the start, 2026-10-31T00:14:24"):
        users_before(PLAN, exposures, feedback)
    with pytest.raises(UserError, match=r"covers 0\.00 of the 0 days before"):
        users_before(changed(days_before=0, metrics={"clicks": {"sum": "click"}}), *new_users(3, 100))
    with pytest.raises(UserError, match="no answers before the start on 2026-10-31; give users_a_day"):
        users_before(changed(start="2026-10-31"), exposures, feedback)


def test_users_a_day_are_those_held_out_too() -> None:
    measured = []
    for holdout in (0.0, 0.5):
        plan = changed(holdout=holdout)
        (row,) = duration(baselines(plan, users_before(plan, *tables(800))))
        measured.append(row["days"])
    assert measured[1] == pytest.approx(
        2 * measured[0], rel=0.15
    )  # half the users are in it, so twice the days; the spread of 400 users is known to 4 %, and its square counts
