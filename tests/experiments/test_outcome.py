"""What an experiment says: effects, guardrails and the verdict."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from adagrpo.experiments.outcome import analyse
from adagrpo.experiments.plan import DAY, Plan
from adagrpo.experiments.units import Units, column_of, users_of
from adagrpo.exposures.exposure_log import FAILED
from adagrpo.report.experiment_page import effects_table

from .two_arms import AFTER, NEVER, PLAN, changed, tables


@pytest.mark.parametrize(("failed", "says"), [(0, "within"), (2, "unclear"), (20, "beyond")])
def test_errors_of_an_arm_are_seen_where_the_control_has_none(failed: int, says: str) -> None:
    exposures, feedback = tables(200)
    new = exposures.filter(pl.col("arm") == "gated")["request_id"].head(2 * failed).gather_every(2)
    broken = exposures.with_columns(
        source=pl.when(pl.col("request_id").is_in(new.implode())).then(pl.lit(FAILED)).otherwise("source")
    )
    plan = changed(
        guardrails={
            "errors": {"sum": "errors", "per": "requests", "margin": 0.1},
            "coverage": {"sum": "distinct_items", "per": "impressions", "better": "up", "margin": 0.02},
        }
    )
    guards = {row["guardrail"]: row for row in analyse(plan, users_of(plan, broken, feedback), now=AFTER)["guardrails"]}
    assert guards["errors"]["says"] == says
    assert guards["coverage"]["says"] == "within"  # everybody was shown the same three items twice


def test_an_arm_that_was_trained_again_within_the_window_makes_no_verdict() -> None:
    exposures, feedback = tables(60, lift=0.5)
    late = (pl.col("time") > PLAN.begins + 2 * DAY) & (pl.col("arm") == "gated")
    reloaded = exposures.with_columns(model_version=pl.when(late).then(pl.lit("other")).otherwise("model_version"))
    result = analyse(PLAN, users_of(PLAN, reloaded, feedback), now=AFTER)
    assert result["verdicts"] == {"new": "invalid"} and not result["effects"]
    assert result["reasons"]["new"].startswith(
        "arm new was served by 2 models, by other from 2026-11-12T00:01:00+00:00 on; an arm that changes"
    )
    early = analyse(PLAN, users_of(PLAN, reloaded, feedback), now=datetime(2026, 11, 13, tzinfo=UTC))
    assert early["verdicts"] == {"new": "invalid"}
    assert result["models"]["new"] == {
        "gated": "2026-11-09T00:01:00+00:00", "other": "2026-11-12T00:01:00+00:00"
    }  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"looks": "daily", "answers": 1200}])
def test_feedback_that_has_not_happened_is_zero_and_claims_nothing(changes: dict[str, Any]) -> None:
    plan = NEVER.model_copy(update=changes)
    units = users_of(plan, *tables(600, lift=0.5))
    result = analyse(plan, units, now=AFTER)
    first, *others = result["effects"]
    assert first["says"] == "better" and len(others) == 5
    assert all(row.keys() == {"treatment", "metric", "says"} for row in others)
    assert {row["says"] for row in others + result["guardrails"]} == {"nothing yet"}
    assert all("relative" not in row for row in result["guardrails"])
    assert effects_table(result["effects"]).rows[1] == ("new", "bought", *("–",) * 6, "nothing yet")
    reason = "better: clicks; not shown to be within the margin: complaints, kept, refunds, cost"
    assert (result["verdicts"], result["reasons"]) == ({"new": "inconclusive"}, {"new": reason})
    assert result["notes"] == [
        "the log has no feedback of kind 'complaint' or 'purchase' or 'return' yet, which counts as 0; "
        "its kinds are click, dwell. Check the spelling in the plan"
    ]
    assert set(units.users["sum: purchase"]) == set(units.users["before: purchase.value"]) == {0.0}
    assert analyse(PLAN, users_of(PLAN, *tables(60)), now=AFTER)["notes"] == []


def test_a_metric_counts_for_the_correction_before_it_happens() -> None:
    exposures, feedback = tables(600, lift=0.2)
    plan = changed(metrics={"clicks": {"sum": "click"}, "bought": {"sum": "purchase"}})
    before, _ = analyse(plan, users_of(plan, exposures, feedback), now=AFTER)["effects"]
    some = (pl.col("kind") == "click") & (pl.col("item") == "2")
    bought = feedback.filter(some).with_columns(kind=pl.lit("purchase"))
    after, row = analyse(plan, users_of(plan, exposures, pl.concat([feedback, bought])), now=AFTER)["effects"]
    assert before["p_value"] < row["p_value"]
    assert before["p_holm"] == pytest.approx(2 * before["p_value"]) and after == before


def test_a_log_without_any_feedback_can_be_read() -> None:
    exposures, feedback = tables(60)
    result = analyse(PLAN, users_of(PLAN, exposures, feedback.clear()), now=AFTER)
    assert {row["says"] for row in result["effects"]} == {"nothing yet"} and "its kinds are none" in result["notes"][0]
    assert result["sample_ratio"][0]["passes"] and result["guardrails"][0]["says"] == "within"


def test_a_share_of_nothing_is_not_within_a_margin() -> None:
    """All requests of the treatment failed: none of its answers was slow, and it had none."""
    exposures, feedback = tables(200)
    broken = exposures.with_columns(
        source=pl.when(pl.col("arm") == "gated").then(pl.lit(FAILED)).otherwise("source"),
        latency_ms=pl.lit(1000.0),
    )
    plan = changed(guardrails={"slow": {"sum": "slow", "per": "answers", "margin": 0.1}})
    assert analyse(plan, users_of(plan, broken, feedback), now=AFTER)["guardrails"][0]["says"] == "unclear"


def test_verdicts_in_words() -> None:
    def said(plan: Plan = PLAN, now: datetime = AFTER, **world: Any) -> tuple[str, str]:
        result = analyse(plan, users_of(plan, *tables(600, **world)), now=now)
        return result["verdicts"]["new"], result["reasons"]["new"]

    assert said(lift=0.5) == ("ship", "better: clicks, ctr, dwell")
    assert said(changed(rule={"metrics": ["ctr"]}), lift=0.5) == ("ship", "better: ctr")
    assert said(lift=-0.5) == ("harm", "worse: clicks, ctr, dwell")
    assert said(lift=0.5, slow=1.5) == ("harm", "worse: latency (guardrail)")
    assert said(lift=0.5, slow=1.1)[0] == "inconclusive"
    assert said() == ("inconclusive", "no metric of the rule is significantly better or worse")
    early = datetime(2026, 11, 12, tzinfo=UTC)
    assert said(now=early, lift=0.5) == (
        "inconclusive",
        "the plan looks at the end, and the window ends on 2026-11-15",
    )
    assert said(changed(looks="daily", answers=1200), early, lift=0.5)[0] == "ship"


def test_no_verdict_where_something_chose_the_users() -> None:
    exposures, feedback = tables(600, lift=0.5)
    lost = pl.col("arm").eq("gated") & (pl.col("user_hash").cast(pl.Int64) % 3 == 0)
    result = analyse(PLAN, users_of(PLAN, exposures.filter(~lost), feedback), now=AFTER)
    assert result["verdicts"] == {"new": "invalid"} and result["effects"] == []
    assert result["reasons"]["new"].startswith("sample ratio of all: now ")
    mixed = exposures.with_columns(arm=pl.lit("sft"))
    result = analyse(PLAN, users_of(PLAN, mixed, feedback), now=AFTER)
    assert "answers are from another arm than the user's" in result["reasons"]["new"]
    nobody = Units(exposures.clear().select(pl.col("arm")), 0, 0, 0, 0)
    before = analyse(PLAN, nobody, now=datetime.fromtimestamp(PLAN.begins - 1, UTC))
    assert before["verdicts"] == {"new": "inconclusive"}
    assert before["reasons"] == {"new": f"its window begins on {PLAN.start}"}
    of_another = analyse(PLAN, nobody, now=datetime.fromtimestamp(PLAN.begins - 1, UTC), mismatch="another plan's log")
    assert (of_another["verdicts"], of_another["reasons"]) == ({"new": "invalid"}, {"new": "another plan's log"})
    assert analyse(PLAN, nobody, now=AFTER)["reasons"] == {"new": "no user was shown anything in the window"}


def test_a_loss_on_one_day_is_found_there() -> None:
    users = pl.DataFrame({"arm": ["now", "new"] * 500, "catalogue": "1", "sum: click": 1.0})
    days = pl.Series([1 + number // 100 for number in range(1000)])
    lost = (days == 3) & (users["arm"] == "new") & (pl.Series(range(1000)) % 100 < 80)
    some = users.with_columns(day=days).filter(~lost)
    checks = analyse(changed(metrics={"a": {"sum": "click"}}), Units(some, 1000, 0, 0, 0), now=AFTER)["sample_ratio"]
    assert [check["part"] for check in checks if not check["passes"]] == ["day 3"]


def test_an_arm_that_lost_everything_is_worse_and_not_unclear() -> None:
    plan = changed(guardrails={"rate": {"sum": "click", "per": "impressions", "better": "up", "margin": 0.1}})
    result = analyse(plan, users_of(plan, *tables(600, lift=-1.0)), now=AFTER)
    assert {row["says"] for row in result["effects"]} == {"worse"} and result["guardrails"][0]["says"] == "beyond"
    assert result["verdicts"] == {"new": "harm"}
    # with a handful of users the control's clicks are not certain either
    few = analyse(plan, users_of(plan, *tables(4, lift=-1.0)), now=AFTER)
    assert {row["says"] for row in few["effects"]} == {"unclear"} and few["guardrails"][0]["says"] == "unclear"


@pytest.mark.parametrize(("buyers", "says"), [(10, "unclear"), (60, "worse")])
def test_a_small_arm_in_which_nothing_has_happened_yet_has_not_lost_it(buyers: int, says: str) -> None:
    """A tenth of the users has nothing of ten rare events more often than not."""
    arms = {"now": {"serves": "sft", "weight": 9}, "new": {"serves": "gated"}}
    rare = {"bought": {"sum": "purchase", "better": "up", "margin": 0.1}}
    plan = changed(arms=arms, metrics={"bought": {"sum": "purchase"}}, rule={}, guardrails=rare)
    table = pl.DataFrame({"arm": ["now"] * 900 + ["new"] * 100, "day": 1, "catalogue": "1"})
    bought = pl.Series([1.0] * buyers + [0.0] * (1000 - buyers))
    users = table.with_columns(bought.alias(column_of("purchase")))
    result = analyse(plan, Units(users, 1000, 0, 0, 0), now=AFTER)
    assert result["effects"][0]["says"] == says
    assert result["guardrails"][0]["says"] == {"unclear": "unclear", "worse": "beyond"}[says]


@pytest.mark.parametrize(
    ("failed", "few", "says"),
    # at the margin a user with errors is of the new arm with 4.5 of 1,001.5, 150 of 1,050 or 750 of 1,250; chance
    # leaves it none in less than 5 % from 666, 20 or 4 such users on, by log(.05) / log(1 - share)
    [
        (100, 3, "nothing yet"),
        (19, 100, "nothing yet"),
        (20, 100, "within"),
        (3, 500, "nothing yet"),
        (4, 500, "within"),
    ],
)
def test_a_small_arm_without_errors_is_within_a_guardrail_where_it_would_hardly_be_so_at_the_margin(
    failed: int, few: int, says: str
) -> None:
    many = 1000 - few
    arms = {"now": {"serves": "sft", "weight": many}, "new": {"serves": "gated", "weight": few}}
    errors = {"errors": {"sum": "errors", "margin": 0.5}}
    plan = changed(arms=arms, metrics={"bought": {"sum": "purchase"}}, rule={}, guardrails=errors)
    table = pl.DataFrame({"arm": ["now"] * many + ["new"] * few, "day": 1, "catalogue": "1"})
    for broken, said in ((failed, says), (0, "within")):
        sums = pl.Series([1.0] * broken + [0.0] * (1000 - broken)).alias(column_of("errors"))
        users = table.with_columns(sums, pl.lit(1.0).alias(column_of("purchase")))
        assert analyse(plan, Units(users, 1000, 0, 0, 0), now=AFTER)["guardrails"][0]["says"] == said


def test_two_users_who_both_clicked_show_nothing() -> None:
    """Of the control every second user did, so two drawn users both did in a quarter of the draws."""
    arms = {"now": {"serves": "sft", "weight": 499}, "new": {"serves": "gated"}}
    clicked = {"clicked": {"sum": "click", "better": "up", "margin": 0.1}}
    plan = changed(arms=arms, metrics={"clicks": {"sum": "click"}}, rule={}, guardrails=clicked)
    table = pl.DataFrame({"arm": ["now"] * 998 + ["new"] * 2, "day": 1, "catalogue": "1"})
    users = table.with_columns(pl.Series([0.0, 1.0] * 499 + [1.0, 1.0]).alias(column_of("click")))
    result = analyse(plan, Units(users, 1000, 0, 0, 0), now=AFTER)
    assert result["effects"][0]["says"] == result["guardrails"][0]["says"] == "unclear"
    assert result["effects"][0]["p_value"] == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("failed", "says"), [(20, "unclear"), (100, "beyond")])
def test_a_small_control_without_errors_says_little(failed: int, says: str) -> None:
    arms = {"now": {"serves": "sft"}, "new": {"serves": "gated", "weight": 9}}
    errors = {"errors": {"sum": "errors", "margin": 0.5}}
    plan = changed(arms=arms, metrics={"bought": {"sum": "purchase"}}, rule={}, guardrails=errors)
    table = pl.DataFrame({"arm": ["new"] * 900 + ["now"] * 100, "day": 1, "catalogue": "1"})
    broken = pl.Series([1.0] * failed + [0.0] * (1000 - failed))
    users = table.with_columns(broken.alias(column_of("errors")), pl.lit(1.0).alias(column_of("purchase")))
    assert analyse(plan, Units(users, 1000, 0, 0, 0), now=AFTER)["guardrails"][0]["says"] == says


def test_daily_looks_see_less_than_one_and_print_no_p() -> None:
    one = analyse(PLAN, users_of(PLAN, *tables(600)), now=AFTER)["effects"][0]
    plan = changed(looks="daily", answers=1200)
    daily = analyse(plan, users_of(plan, *tables(600)), now=AFTER)["effects"][0]
    assert daily["detectable"] > 1.3 * one["detectable"]
    shown = effects_table([one, daily]).rows
    assert shown[0][6] == f"{one['p_holm']:.3g}" and shown[1][6] == "–"
