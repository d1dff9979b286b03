"""Feedback that counts nowhere: an arm that loses more of it, or may have lost more, makes no verdict."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy import stats

from adagrpo.experiments.allocation import assign
from adagrpo.experiments.outcome import analyse
from adagrpo.experiments.plan import DAY, Plan
from adagrpo.experiments.units import users_of
from adagrpo.experiments.validity import LEVEL, check_left_out, counted_p_value

from .two_arms import AFTER, PLAN, changed, tables

FAULTS: dict[str, dict[str, pl.Expr]] = {  # feedback comes 30 s after its answer
    "early": {"time": pl.col("time") - 90},
    "late": {"time": pl.col("time") + 8 * DAY},
    "not_shown": {"item": pl.lit("9")},
    "unknown": {"request_id": "x" + pl.col("request_id")},
    "repeated": {},
}
LOG = cache(tables)
SHARES = ({"now": 0.5}, {"now": 0.05}, {"new": 0.5}, {"new": 0.05})


def result_of(fault: str, shares: Mapping[str, float], router: bool = False, plan: Plan = PLAN, **world: float) -> Any:
    """The result of 600 users of whose feedback in the window a share has a fault, by arm; and how many events had."""
    exposures, feedback = LOG(600, **world)
    if router:
        exposures = exposures.with_columns(experiment=pl.lit(None, pl.String), salt_version=pl.lit(None, pl.String))
    users = [request.split("-")[0] for request in feedback["request_id"]]
    share = [shares.get(str(assign(user, salt="2026-11", weights={"now": 1, "new": 1})), 0.0) for user in users]
    faulty = pl.Series(np.random.default_rng(1).random(len(share)) < share) & (feedback["time"] >= PLAN.begins)
    some = feedback.filter(faulty).with_columns(**FAULTS[fault])
    rest = feedback if fault == "repeated" else feedback.filter(~faulty)
    return analyse(plan, users_of(plan, exposures, pl.concat([rest, some])), now=AFTER), len(some)


@pytest.mark.parametrize("router", [False, True])
@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_feedback_of_one_arm_that_is_left_out_makes_no_verdict(
    fault: str, shares: dict[str, float], router: bool
) -> None:
    """Of two arms without a difference the one that loses half of its clicks looked worse by half."""
    result, events = result_of(fault, shares, router)
    ((arm, share),) = shares.items()
    assert result["verdicts"] == {"new": "invalid"} and result["effects"] == []
    assert result["counts"][f"feedback_{fault}"] == events > 20
    reason = result["reasons"]["new"]
    if fault == "unknown":
        assert reason.startswith(
            f"{events:,} events of feedback are of requests that the log does not have, so nothing tells their arm, "
        )
    else:
        found = {name: reason.split(f"{name} ")[1].split(")")[0] for name in ("now", "new")}
        assert float(found.pop(arm).split("(")[1].rstrip("%")) / 100 == pytest.approx(
            share / (1 + share) if fault == "repeated" else share, abs=0.03
        )
        assert [said.split(" of ")[0] for said in found.values()] == ["0"]


@pytest.mark.parametrize("fault", ["early", "late", "not_shown", "repeated"])
def test_equal_shares_that_are_left_out_leave_the_verdict(fault: str) -> None:
    """Also where one arm has more feedback, and so more of it left out."""
    result, events = result_of(fault, {"now": 0.1, "new": 0.1}, lift=0.6)
    assert result["verdicts"] == {"new": "ship"} and result["counts"][f"feedback_{fault}"] == events > 100


def test_as_much_feedback_of_unknown_requests_may_be_as_the_plan_says() -> None:
    share = {"now": 0.02}
    assert result_of("unknown", share, lift=0.6)[0]["verdicts"] == {"new": "invalid"}
    plan = changed(most_misassigned=0.02)
    assert result_of("unknown", share, plan=plan, lift=0.6)[0]["verdicts"] == {"new": "ship"}


def test_feedback_that_no_metric_is_of_decides_nothing() -> None:
    plan = changed(metrics={"seen": {"sum": "impressions"}})
    for fault in FAULTS:
        assert result_of(fault, {"now": 0.5}, plan=plan)[0]["verdicts"] == {"new": "inconclusive"}


def test_few_users_are_counted_and_not_guessed() -> None:
    """All events of three users of one arm, none of three users of the other: 2 of the 20 ways to deal them."""
    assert counted_p_value(np.zeros(3), np.ones(3), LEVEL) == pytest.approx(0.1, abs=0.02)
    assert counted_p_value(np.zeros(1), np.ones(9), LEVEL) == counted_p_value(np.ones(9), np.ones(9), LEVEL) == 1.0
    events = pl.DataFrame(
        [(f"{arm}{user}", arm, "click", 2, 2 * (arm == "new")) for arm in ("now", "new") for user in range(8)],
        schema=["user_hash", "arm", "kind", "events", "left_out"],
        orient="row",
    )  # 2 of the 12,870 ways
    (check,) = check_left_out(events, "now", "new", tests=1)
    assert check.counts == {"now": (0, 16), "new": (16, 16)} and check.p_value < LEVEL and not check.passes


def errors_of(left: NDArray[Any], events: NDArray[Any], treated: NDArray[Any]) -> tuple[Any, Any]:
    """(S,) how many errors the arms lie apart, and (S, N) a number a user, of which `check_left_out` makes it."""
    numbers = left - left.sum(1, keepdims=True) / events.sum(1, keepdims=True) * events
    moments = []
    for arm in (treated & (events > 0), ~treated & (events > 0)):
        users = arm.sum(1)
        mean = (numbers * arm).sum(1) / users
        moments.append((mean, ((numbers**2 * arm).sum(1) / users - mean**2) / (users - 1)))
    return (moments[0][0] - moments[1][0]) / np.sqrt(moments[0][1] + moments[1][1]), numbers


@pytest.mark.parametrize(
    ("share", "lift", "experiments"),
    [(0.5, 0.0, 20_000), (0.5, 1.0, 20_000), pytest.param(0.1, 0.0, 5_000, marks=pytest.mark.slow)],
)
def test_equal_shares_raise_an_alarm_at_most_as_often_as_stated(share: float, lift: float, experiments: int) -> None:
    """300 users in arms that are equal, or of which one has twice the events, or a tenth of the users.

    A p-value below the level needs one by the normal distribution, so the others need no draws.
    """
    draw, alarms = np.random.default_rng(0), 0
    for _ in range(experiments // 1000):
        treated = draw.random((1000, 300)) < share
        events = draw.poisson(0.4 * (1 + lift * treated))
        left = draw.binomial(events, 0.3)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors, numbers = errors_of(left, events, treated)
        for row in np.flatnonzero(~(2 * stats.norm.sf(np.abs(errors)) >= LEVEL)):
            some, arm = numbers[row][events[row] > 0], treated[row][events[row] > 0]
            alarms += counted_p_value(some[~arm], some[arm], LEVEL) < LEVEL
    assert 0 < alarms <= stats.binom.ppf(0.999, experiments, LEVEL)
