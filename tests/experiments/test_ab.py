"""An experiment from the rows of an exposure log to its verdict, by the command line and by the pieces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo import cli
from adagrpo.errors import UserError
from adagrpo.experiments.allocation import assign
from adagrpo.experiments.duration import baselines, duration
from adagrpo.experiments.outcome import analyse
from adagrpo.experiments.plan import DAY, Plan
from adagrpo.experiments.units import Units, users_before, users_of
from adagrpo.pipeline.experiment import experiment
from adagrpo.report import effects_table
from adagrpo.serving.exposure_log import FAILED, Exposure, Feedback
from adagrpo.serving.exposure_parts import EXPOSURE_SCHEMA, FEEDBACK_SCHEMA
from adagrpo.serving.exposure_store import LocalExposureLog

CONTENT: dict[str, Any] = {
    "name": "gated",
    "arms": {"now": {"serves": "sft"}, "new": {"serves": "gated"}},
    "control": "now",
    "salt": "2026-11",
    "start": "2026-11-08",
    "days": 7,
    "days_before": 7,
    "metrics": {
        "clicks": {"sum": "click"},
        "ctr": {"sum": "click", "per": "impressions"},
        "dwell": {"sum": "dwell.value", "cuped": True, "expected": 0.02},
    },
    "guardrails": {"latency": {"sum": "latency_ms", "per": "answers", "margin": 0.1}},
}
PLAN = Plan.model_validate(CONTENT)
AFTER = datetime(2026, 12, 1, tzinfo=UTC)


def rows(users: int, lift: float = 0.0, slow: float = 1.0) -> tuple[list[Exposure], list[Feedback]]:
    """Two answers before the start and two in the window, of three items each, a click with 20 seconds of dwell."""
    draw, shown, said = np.random.default_rng(0), [], []
    for user in map(str, range(users)):
        arm = assign(user, salt="2026-11", weights={"now": 1, "new": 1})
        for visit, day in enumerate((-5, -2, 1, 4)):
            treated = arm == "new" and day >= 0
            time = PLAN.begins + day * DAY + 60
            name, ms = f"{user}-{visit}", float(draw.uniform(5, 15)) * (slow if treated else 1)
            kind = "gated" if treated else "sft"
            shown.append(
                Exposure(
                    request_id=name, time=time, slate=(1, 2, 3), arm=kind, model_version=kind, catalog_version="1",
                    user_hash=user, experiment="gated" if day >= 0 else None, latency_ms=ms,
                )
            )  # fmt: skip
            for item in (1, 2, 3):
                if draw.random() < 0.3 * (1 + lift * treated):
                    moment = time + 30
                    said.append(Feedback(request_id=name, item=item, kind="click", time=moment))
                    said.append(Feedback(request_id=name, item=item, kind="dwell", time=moment, value=20.0))
    return shown, said


def tables(*given: Any, **options: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    shown, said = rows(*given, **options)
    exposures = pl.DataFrame(
        [
            {name: getattr(row, name) for name in EXPOSURE_SCHEMA} | {"slate": list(map(str, row.slate))}
            for row in shown
        ],
        schema=EXPOSURE_SCHEMA,
    )
    feedback = pl.DataFrame(
        [{name: getattr(row, name) for name in FEEDBACK_SCHEMA} | {"item": str(row.item)} for row in said],
        schema=FEEDBACK_SCHEMA,
    )
    return exposures, feedback


def changed(**changes: Any) -> Plan:
    return Plan.model_validate(CONTENT | changes)


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
        "arm new was served by 2 models, by other from 2026-11-12T00:01:00+00:00 on; an arm that was trained again"
    )
    early = analyse(PLAN, users_of(PLAN, reloaded, feedback), now=datetime(2026, 11, 13, tzinfo=UTC))
    assert early["verdicts"] == {"new": "invalid"}
    assert result["models"]["new"] == {
        "gated": "2026-11-09T00:01:00+00:00", "other": "2026-11-12T00:01:00+00:00"
    }  # fmt: skip


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


NEVER = changed(
    metrics={
        "clicks": {"sum": "click"},
        "bought": {"sum": "purchase"},
        "spent": {"sum": "purchase.value", "cuped": True},
        "rate": {"sum": "purchase", "per": "impressions", "better": "down"},
        "clicks a purchase": {"sum": "click", "per": "purchase"},
        "returned": {"sum": "return", "per": "purchase"},
    },
    guardrails={
        "complaints": {"sum": "complaint", "margin": 0.1},
        "kept": {"sum": "purchase", "better": "up", "margin": 0.1},
        "refunds": {"sum": "complaint", "per": "purchase", "margin": 0.1},
        "cost": {"sum": "click", "per": "purchase", "margin": 0.1},
    },
)


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
        "its kinds are click, dwell. A kind that the plan misspells never comes"
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


def test_the_size_of_a_plan_needs_the_feedback_that_it_sums() -> None:
    plan = changed(metrics={"a": {"sum": "clik", "expected": 0.1}})
    with pytest.raises(UserError, match="no feedback of kind 'clik'; its kinds are click, dwell"):
        users_before(plan, *tables(10))


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


def test_verdicts_in_words() -> None:
    def said(plan: Plan = PLAN, now: datetime = AFTER, **world: Any) -> tuple[str, str]:
        result = analyse(plan, users_of(plan, *tables(600, **world)), now=now)
        return result["verdicts"]["new"], result["reasons"]["new"]

    assert said(lift=0.5) == ("ship", "better: clicks, ctr, dwell")
    assert said(changed(rule={"metrics": ["ctr"]}), lift=0.5) == ("ship", "better: ctr")
    assert said(lift=-0.5) == ("harm", "worse: clicks, ctr, dwell")
    assert said(lift=0.5, slow=1.5) == ("harm", "worse: latency (guardrail)")
    assert said(lift=0.5, slow=1.1)[0] == "inconclusive"
    assert said() == ("inconclusive", "no metric of the rule is certainly better or worse")
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
    assert "answers are of another arm than the user's" in result["reasons"]["new"]
    nobody = Units(exposures.clear().select(pl.col("arm")), 0, 0, 0, 0)
    assert analyse(PLAN, nobody, now=AFTER)["reasons"] == {"new": "no user was shown anything in the window"}


def test_a_loss_on_one_day_is_found_there() -> None:
    users = pl.DataFrame({"arm": ["now", "new"] * 500, "catalogue": "1", "sum: click": 1.0})
    days = pl.Series([1 + number // 100 for number in range(1000)])
    lost = (days == 3) & (users["arm"] == "new") & (pl.Series(range(1000)) % 100 < 80)
    some = users.with_columns(day=days).filter(~lost)
    checks = analyse(changed(metrics={"a": {"sum": "click"}}), Units(some, 1000, 0, 0, 0), now=AFTER)["sample_ratio"]
    assert [check["part"] for check in checks if not check["passes"]] == ["day 3"]


@pytest.fixture
def adagrpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adagrpo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    return run


def test_the_verb(adagrpo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    plan, log = tmp_path / "plan.yaml", LocalExposureLog(tmp_path / "exposures")
    shown, said = rows(200, lift=0.6)
    log.write(shown)
    log.feedback(said)
    log.close()
    plan.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    status, out, err = adagrpo("ab", plan, "--power", "--exposures", tmp_path / "exposures")
    assert (status, err) == (0, "") and "+2.00%" in out and not (tmp_path / "plan.yaml.frozen.json").exists()
    assert out.endswith("read: 5.0 days of the log, 2026-11-03T00:01:00+00:00 to 2026-11-08T00:00:00+00:00\n")
    (row,) = json.loads(adagrpo("ab", plan, "--power", "--exposures", tmp_path / "exposures", "--json")[1])
    assert row["read"]["to"] == "2026-11-08T00:00:00+00:00" and row["read"]["days"] == pytest.approx(5 - 60 / DAY)
    status, out, _ = adagrpo("ab", plan, "--freeze", "--json")
    frozen = json.loads(out)["plan"]
    plan.write_text(yaml.safe_dump(CONTENT | {"looks": "daily", "answers": 400}), encoding="utf-8")
    status, _, err = adagrpo("ab", plan, "--exposures", tmp_path / "exposures")
    assert status == 2 and "was changed after it was frozen" in err and err.count("\n") == 1
    plan.write_text(yaml.safe_dump(CONTENT | {"start": "2020-01-01"}), encoding="utf-8")
    (tmp_path / "plan.yaml.frozen.json").unlink()
    status, out, _ = adagrpo("ab", plan, "--exposures", tmp_path / "exposures")
    assert status == 0 and out.startswith("new: invalid; no user was shown anything")
    assert "(after the start)" in out
    daily = tmp_path / "daily.yaml"
    daily.write_text(yaml.safe_dump(CONTENT | {"looks": "daily", "answers": 400}), encoding="utf-8")
    status, out, _ = adagrpo("ab", daily, "--exposures", tmp_path / "exposures")
    assert status == 0 and out.startswith("new: ship; better: ") and "latency" in out
    status, out, _ = adagrpo("ab", daily, "--exposures", tmp_path / "exposures", "--json")
    result = json.loads(out)
    assert result["verdicts"] == {"new": "ship"} and result["plan"] != frozen
    by_day = {day: [row for row in result["daily"] if row["through"] == day] for day in ("2026-11-09", "2026-11-14")}
    assert [row | {"through": ""} for row in by_day["2026-11-14"]] == [
        row | {"through": ""} for row in result["effects"]
    ]
    users = [row for row in result["daily"] if row["through"] == "2026-11-09"]
    assert users[0]["interval"][1] - users[0]["interval"][0] > 1.2 * np.ptp(result["effects"][0]["interval"])
    status, out, _ = adagrpo("ab", daily, "--exposures", tmp_path / "exposures", "--daily")
    assert status == 0 and out.count("2026-11-12") == 3
    status, _, err = adagrpo("ab", daily)
    assert status == 2 and "--exposures" in err


def test_the_verb_where_a_purchase_has_not_happened(
    adagrpo: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    log = LocalExposureLog(tmp_path / "exposures")
    shown, said = rows(200, lift=0.6)
    log.write(shown)
    log.feedback(said)
    log.close()
    plan = NEVER.model_dump(mode="json") | {"looks": "daily", "answers": 400}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    given = ("ab", tmp_path / "plan.yaml", "--exposures", tmp_path / "exposures", "--out", tmp_path / "page", "--daily")
    status, out, err = adagrpo(*given)
    assert (status, err) == (0, "") and out.startswith("new: inconclusive; better: clicks; not shown")
    assert "\nnote: the log has no feedback of kind 'complaint' or 'purchase' or 'return' yet" in out
    assert out.count("nothing yet") == 9 and "nan" not in out and "inf" not in out
    page = (tmp_path / "page" / "experiment.html").read_text(encoding="utf-8")
    assert page.count('<td class="left">nothing yet</td>') == 9 and "its kinds are click, dwell." in page
    assert ">nan" not in page and "Effect on bought until each day" in page


def test_an_arm_that_lost_everything_is_worse_and_not_unclear() -> None:
    plan = changed(guardrails={"rate": {"sum": "click", "per": "impressions", "better": "up", "margin": 0.1}})
    result = analyse(plan, users_of(plan, *tables(600, lift=-1.0)), now=AFTER)
    assert {row["says"] for row in result["effects"]} == {"worse"} and result["guardrails"][0]["says"] == "beyond"
    assert result["verdicts"] == {"new": "harm"}
    # with a handful of users the control's clicks are not certain either
    few = analyse(plan, users_of(plan, *tables(4, lift=-1.0)), now=AFTER)
    assert {row["says"] for row in few["effects"]} == {"unclear"} and few["guardrails"][0]["says"] == "unclear"


def test_daily_looks_see_less_than_one_and_print_no_p() -> None:
    one = analyse(PLAN, users_of(PLAN, *tables(600)), now=AFTER)["effects"][0]
    plan = changed(looks="daily", answers=1200)
    daily = analyse(plan, users_of(plan, *tables(600)), now=AFTER)["effects"][0]
    assert daily["detectable"] > 1.3 * one["detectable"]
    shown = effects_table([one, daily]).rows
    assert shown[0][6] == f"{one['p_holm']:.3g}" and shown[1][6] == "–"


def test_an_arm_of_no_verdict_has_no_daily_effects(tmp_path: Path) -> None:
    """Of two treatments one was trained again within the window."""
    arms = {"now": {"serves": "sft"}, "a": {"serves": "x"}, "b": {"serves": "y"}}
    content = CONTENT | {"arms": arms, "days": 4, "metrics": {"clicks": {"sum": "click"}}, "guardrails": {}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    log, draw = LocalExposureLog(tmp_path / "exposures"), np.random.default_rng(0)
    for user, day in ((user, day) for user in map(str, range(300)) for day in (0, 2)):
        arm = assign(user, salt="2026-11", weights=dict.fromkeys(arms, 1))
        name, time = f"{user}-{day}", PLAN.begins + day * DAY + 60
        model = arms[arm]["serves"] + ("2" if (arm, day) == ("b", 2) else "")
        shown = Exposure(
            request_id=name, time=time, slate=(1, 2, 3), arm=arms[arm]["serves"], model_version=model,
            catalog_version="1", user_hash=user, experiment="gated", latency_ms=5.0,
        )  # fmt: skip
        log.write([shown])
        said = [item for item in (1, 2, 3) if draw.random() < 0.3]
        log.feedback([Feedback(request_id=name, item=item, kind="click", time=time + 30) for item in said])
    log.close()
    result = experiment(tmp_path / "plan.yaml", tmp_path / "exposures", AFTER)
    assert result["verdicts"] == {"a": "inconclusive", "b": "invalid"}
    assert {row["treatment"] for row in result["effects"] + result["daily"]} == {"a"}


def test_days_before_the_service_had_the_plan_have_no_effects() -> None:
    exposures, feedback = tables(40)
    early = exposures.filter(pl.col("request_id").str.ends_with("-2")).with_columns(
        (pl.col("request_id") + "-early").alias("request_id"), pl.lit(None, pl.String).alias("experiment"),
        pl.col("time") - DAY, pl.lit("sft").alias("arm"), pl.lit("sft").alias("model_version"),
    )  # fmt: skip
    log = pl.concat([exposures, early.cast(EXPOSURE_SCHEMA)])
    assert users_of(changed(days=1), log, feedback).answers == 0
    assert users_of(PLAN, log, feedback, until=PLAN.begins + DAY).answers == 0  # an arm that was stopped by then
    assert users_of(PLAN, log, feedback).answers == users_of(changed(days=7), exposures, feedback).answers == 80


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
