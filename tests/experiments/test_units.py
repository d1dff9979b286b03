"""Users of an experiment from the rows of an exposure log: their sums, and who is left out."""

from __future__ import annotations

import json

import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.experiments.allocation import assign
from adagrpo.experiments.duration import baselines, duration
from adagrpo.experiments.outcome import analyse
from adagrpo.experiments.plan import Plan
from adagrpo.experiments.units import users_before, users_of
from adagrpo.exposures.exposure_log import FAILED

from .two_arms import AFTER, PLAN, changed, tables


def test_a_user_is_a_row_of_sums() -> None:
    exposures, feedback = tables(40)
    units = users_of(PLAN, exposures, pl.concat([feedback, feedback]))
    assert units[1:8] == (80, 0, 0, 0, 0, 0, 0) and len(units.users) == 40
    assert {arm: list(seen) for arm, seen in units.models.items()} == {"now": ["sft"], "new": ["gated"]}
    window = exposures.filter(pl.col("time") >= PLAN.begins)
    for user, arm, day, clicks, seconds, before in units.users.select(
        "user_hash", "arm", "day", "sum: click", "sum: dwell.value", "before: dwell.value"
    ).iter_rows():
        ids = set(window.filter(pl.col("user_hash") == user)["request_id"])
        mine = [row for row in feedback.iter_rows(named=True) if row["request_id"].split("-")[0] == user]
        assert clicks == sum(row["kind"] == "click" and row["request_id"] in ids for row in mine)
        assert seconds == 20 * clicks
        assert before == sum(row["value"] for row in mine if row["kind"] == "dwell" and row["request_id"] not in ids)
        assert arm == assign(user, salt="2026-11", weights={"now": 1, "new": 1}) and str(day) == "2026-11-09"


def test_requests_that_got_no_list_are_errors_and_no_answers() -> None:
    """User 0 gets one list and one error, which took a second, where everyone else has two lists."""
    exposures, feedback = tables(40)
    last = pl.col("request_id") == "0-3"
    none = pl.lit([], pl.List(pl.String))
    failed = exposures.with_columns(
        slate=pl.when(last).then(none).otherwise("slate"),
        source=pl.when(last).then(pl.lit(FAILED)).otherwise("source"),
        latency_ms=pl.when(last).then(pl.lit(1000.0)).otherwise("latency_ms"),
    )
    sums = ("errors", "requests", "answers", "empty", "slow", "latency_ms")
    plan = changed(guardrails={name: {"sum": name, "margin": 0.1} for name in sums})
    units = users_of(plan, failed, feedback)
    row, other = (units.users.filter(pl.col("user_hash") == user).row(0, named=True) for user in "01")
    assert units.requests_failed == 1 and units.answers == 79 and row["sum: latency_ms"] < 20
    assert [row[f"sum: {name}"] for name in sums[:5]] == [1, 2, 1, 0, 0]
    assert [other[f"sum: {name}"] for name in sums[:5]] == [0, 2, 2, 0, 0]


def test_who_is_left_out_is_counted() -> None:
    exposures, feedback = tables(40)
    units = users_of(changed(exclude=["3", "4"], holdout=0.25), exposures, feedback)
    assert units.answers_excluded == 4
    assert units.answers == 2 * len(units.users) == 76 - units.answers_held_out and units.answers_held_out > 0
    other = exposures.with_columns(experiment=pl.lit("another"))
    assert len(users_of(PLAN, other, feedback).users) == 0
    assert len(users_before(PLAN, other, feedback).users) == 40


def test_items_of_the_tail_and_of_no_catalogue() -> None:
    exposures, feedback = tables(10)
    last = pl.col("request_id") == "0-3"
    changed_log = exposures.with_columns(slate=pl.when(last).then(pl.lit(["1", "1", "9"])).otherwise("slate"))
    sums = {"tail": {"sum": "tail"}, "none": {"sum": "unlisted"}, "own": {"sum": "distinct_items"}}
    plan = changed(metrics=sums, guardrails={}, catalogue="items.txt")
    users = users_of(plan, changed_log, feedback, frozenset("123")).users.filter(pl.col("user_hash") == "0")
    # three items before, all shown as often: the head is a fifth of them, so the first by id
    assert users.select("sum: tail", "sum: unlisted", "sum: distinct_items").row(0) == (2 + 1, 1, 4)
    with pytest.raises(UserError, match="tail: the log has no answers in the days before"):
        users_of(plan, changed_log.filter(pl.col("time") > PLAN.begins), feedback, frozenset("123"))


COLUMNS = ["user_hash", "arm", "day", "catalogue", "place", "item", "request_id", "before: click", "sum: click"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_kind_of_feedback_may_be_called_as_a_column_is(name: str) -> None:
    exposures, feedback = tables(200, lift=0.5)
    renamed = feedback.with_columns(kind=pl.col("kind").replace("click", name))
    metrics = {"clicks": {"sum": "click", "cuped": True}, "ctr": {"sum": "click", "per": "impressions"}}
    plan = changed(metrics=metrics, guardrails={"few": {"sum": "click", "better": "up", "margin": 0.1}})
    other = Plan.model_validate(json.loads(json.dumps(plan.model_dump(mode="json")).replace('"click"', f'"{name}"')))
    found = analyse(other, users_of(other, exposures, renamed), now=AFTER)
    assert found == analyse(plan, users_of(plan, exposures, feedback), now=AFTER)
    assert all("relative" in row for row in found["effects"])
    expects = {"metrics": {"a": {"sum": name, "expected": 0.1}}}
    (row,) = duration(baselines(changed(**expects), users_before(changed(**expects), exposures, renamed)))
    assert row["variation"] > 0.5
