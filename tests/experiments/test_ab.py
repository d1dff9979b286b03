"""An experiment from the rows of an exposure log to its verdict, by the command line."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.experiments.allocation import assign
from adagrpo.experiments.plan import DAY, Plan, freeze
from adagrpo.experiments.units import users_of
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import EXPOSURE_SCHEMA, LocalExposureLog
from adagrpo.pipeline.experiment import experiment

from ..command_line import command
from .two_arms import AFTER, CONTENT, NEVER, PLAN, changed, rows, tables, version


def test_the_verb(tmp_path: Path) -> None:
    plan, log = tmp_path / "plan.yaml", LocalExposureLog(tmp_path / "exposures")
    shown, said = rows(200, lift=0.6, plan=changed(looks="daily", answers=400))
    log.write(shown)
    log.feedback(said)
    log.close()
    plan.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    status, out, err = command("ab", plan, "--power", "--exposures", tmp_path / "exposures")
    assert (status, err) == (0, "") and "+2.00%" in out and not (tmp_path / "plan.yaml.frozen.json").exists()
    assert out.endswith("read: 5.0 days of the log, 2026-11-03T00:01:00+00:00 to 2026-11-08T00:00:00+00:00\n")
    (row,) = json.loads(command("ab", plan, "--power", "--exposures", tmp_path / "exposures", "--json")[1])
    assert row["read"]["to"] == "2026-11-08T00:00:00+00:00" and row["read"]["days"] == pytest.approx(5 - 60 / DAY)
    status, _, err = command("ab", plan, "--freeze", "--json")
    assert status == 2 and "its window ended on 2026-11-15" in err
    frozen = json.loads(command("ab", plan, "--exposures", tmp_path / "exposures", "--json")[1])["plan"]
    plan.write_text(yaml.safe_dump(CONTENT | {"looks": "daily", "answers": 400}), encoding="utf-8")
    status, _, err = command("ab", plan, "--exposures", tmp_path / "exposures")
    assert status == 2 and "was changed after it was frozen" in err and err.count("\n") == 1
    plan.write_text(yaml.safe_dump(CONTENT | {"start": "2020-01-01"}), encoding="utf-8")
    (tmp_path / "plan.yaml.frozen.json").unlink()
    status, out, _ = command("ab", plan, "--exposures", tmp_path / "exposures")
    assert status == 0 and out.startswith("new: invalid; no user was shown anything")
    assert "(after the start)" in out
    daily = tmp_path / "daily.yaml"
    daily.write_text(yaml.safe_dump(CONTENT | {"looks": "daily", "answers": 400}), encoding="utf-8")
    status, out, _ = command("ab", daily, "--exposures", tmp_path / "exposures")
    assert status == 0 and out.startswith("new: ship; better: ") and "latency" in out
    status, out, _ = command("ab", daily, "--exposures", tmp_path / "exposures", "--json")
    result = json.loads(out)
    assert result["verdicts"] == {"new": "ship"} and result["plan"] != frozen
    by_day = {day: [row for row in result["daily"] if row["through"] == day] for day in ("2026-11-09", "2026-11-14")}
    assert [row | {"through": ""} for row in by_day["2026-11-14"]] == [
        row | {"through": ""} for row in result["effects"]
    ]
    users = [row for row in result["daily"] if row["through"] == "2026-11-09"]
    assert users[0]["interval"][1] - users[0]["interval"][0] > 1.2 * np.ptp(result["effects"][0]["interval"])
    status, out, _ = command("ab", daily, "--exposures", tmp_path / "exposures", "--daily")
    assert status == 0 and out.count("2026-11-12") == 3
    status, _, err = command("ab", daily)
    assert status == 2 and "--exposures" in err


def test_the_verb_where_a_purchase_has_not_happened(tmp_path: Path) -> None:
    log = LocalExposureLog(tmp_path / "exposures")
    plan = NEVER.model_dump(mode="json") | {"looks": "daily", "answers": 400}
    shown, said = rows(200, lift=0.6, plan=Plan.model_validate(plan))
    log.write(shown)
    log.feedback(said)
    log.close()
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    given = ("ab", tmp_path / "plan.yaml", "--exposures", tmp_path / "exposures", "--out", tmp_path / "page", "--daily")
    status, out, err = command(*given)
    assert (status, err) == (0, "") and out.startswith("new: inconclusive; better: clicks; not shown")
    assert "\nnote: the log has no feedback of kind 'complaint' or 'purchase' or 'return' yet" in out
    assert out.count("nothing yet") == 9 and "nan" not in out and "inf" not in out
    assert command(*given)[0] == 0  # into a folder of its own
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "experiment.json").write_text("mine", encoding="utf-8")
    status, _, err = command(*given[:5], tmp_path / "else")
    assert status == 2 and "is not empty and no experiment of this program" in err
    assert (tmp_path / "else" / "experiment.json").read_text(encoding="utf-8") == "mine"
    page = (tmp_path / "page" / "experiment.html").read_text(encoding="utf-8")
    assert page.count('<td class="left">nothing yet</td>') == 9 and "its kinds are click, dwell." in page
    assert ">nan" not in page and "Effect on bought until each day" in page


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
            catalog_version="1", user_hash=user, key_version="k", experiment="gated",
            salt_version=version(Plan.model_validate(content)), latency_ms=5.0,
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


def log_of(tmp_path: Path, *written: tuple[list[Exposure], list[Feedback]]) -> tuple[Path, Path]:
    """A plan that found a gain, and the log of it."""
    plan, log = tmp_path / "plan.yaml", LocalExposureLog(tmp_path / "exposures")
    plan.write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    for shown, said in written:
        log.write(shown)
        log.feedback(said)
    log.close()
    return plan, tmp_path / "exposures"


def in_the_window(rows: list[Exposure], later: bool) -> list[Exposure]:
    return [row for row in rows if row.time >= PLAN.begins and (row.time >= PLAN.begins + 2 * DAY) == later]


def test_answers_of_another_plan_are_no_verdict(tmp_path: Path) -> None:
    """From the third day on they were dealt by another plan of the same name and salt."""
    shown, said = rows(300, lift=0.6)
    assert experiment(*log_of(tmp_path / "own", (shown, said)), AFTER)["verdicts"] == {"new": "ship"}
    later = [replace(row, salt_version="another") for row in in_the_window(shown, True)]
    plan, log = log_of(tmp_path / "other", (in_the_window(shown, False), said), (later, []))
    result = experiment(plan, log, AFTER)
    assert result["verdicts"] == {"new": "invalid"} and result["effects"] == result["daily"] == []
    assert result["counts"]["answers_of_other_plan"] == 300 and result["counts"]["answers_of_other_key"] == 0
    assert result["reasons"]["new"] == (
        f"300 answers are of another plan (another; this one is {version(PLAN)}), the first in "
        f"{log / 'parts' / '000001' / 'exposures.parquet'}, row 301"
    )


def test_a_plan_that_was_edited_after_the_data_is_no_verdict_though_its_frozen_file_is_gone(tmp_path: Path) -> None:
    plan, log = log_of(tmp_path, rows(300, lift=0.6))
    plan.write_text(yaml.safe_dump(CONTENT | {"metrics": {"clicks": {"sum": "click"}}}), encoding="utf-8")
    result = experiment(plan, log, AFTER)
    assert result["verdicts"] == {"new": "invalid"} and result["counts"]["answers_of_other_plan"] == 600


@pytest.mark.parametrize(("frozen", "before"), [(-DAY, 0), (DAY, 0), (2 * DAY, 300), (20 * DAY, 600)])
def test_a_router_needs_a_plan_that_was_frozen_before_its_answers(tmp_path: Path, frozen: float, before: int) -> None:
    """Its answers name no plan; they are of the second and fifth day."""
    shown, said = rows(300, lift=0.6)
    plan, log = log_of(tmp_path, ([replace(row, experiment=None, salt_version=None) for row in shown], said))
    moment = datetime.fromtimestamp(PLAN.begins + frozen, UTC)
    freeze(plan, PLAN, now=moment)
    result = experiment(plan, log, AFTER)
    assert result["counts"]["answers_before_the_plan"] == before
    assert result["verdicts"] == {"new": "invalid" if before else "ship"} and bool(result["effects"]) != bool(before)
    if before:
        assert result["reasons"]["new"] == (
            f"{before} answers are from before {moment.isoformat()}, when the plan was frozen, and name no plan, the "
            f"first in {log / 'parts' / '000001' / 'exposures.parquet'}, row 3"
        )


def test_feedback_that_the_log_dropped_as_repeated_changes_nothing(tmp_path: Path) -> None:
    shown, said = rows(300)
    once = experiment(*log_of(tmp_path / "once", (shown, said)), AFTER)
    twice = experiment(*log_of(tmp_path / "twice", (shown, said), ([], said[::2])), AFTER)
    assert once["effects"] == twice["effects"] and once["verdicts"] == twice["verdicts"] == {"new": "inconclusive"}


def test_users_that_were_hashed_with_two_keys_are_no_verdict(tmp_path: Path) -> None:
    """Every user came back as another one, half of them in the other arm."""
    (shown, said), (again, _) = rows(300, lift=0.6), rows(300, lift=0.6, key="k2")
    weights = {"now": 1.0, "new": 1.0}
    later = []
    for row in in_the_window(again, True):
        user = f"other-{row.user_hash}"
        kind = "gated" if assign(user, salt="2026-11", weights=weights) == "new" else "sft"
        later.append(replace(row, user_hash=user, arm=kind, model_version=kind))
    plan, log = log_of(tmp_path, (in_the_window(shown, False), said), (later, []))
    result = experiment(plan, log, AFTER)
    assert result["verdicts"] == {"new": "invalid"} and result["counts"]["answers_of_other_key"] == 300
    assert (
        "300 answers are of users that were hashed with another key than before (k2), the first in"
        in (result["reasons"]["new"])
    )


def test_feedback_before_its_answer_or_long_after_it_counts_nowhere(tmp_path: Path) -> None:
    shown, said = rows(300, lift=0.6)
    times = {row.request_id: row.time for row in shown}
    inside = [one for one in said if times[one.request_id] >= PLAN.begins]
    for name, shift, column in (("early", -11 * DAY, "feedback_early"), ("late", 31 * 365 * DAY, "feedback_late")):
        moved = [replace(one, time=one.time + shift) for one in inside]
        result = experiment(*log_of(tmp_path / name, (shown, moved)), AFTER)
        assert result["verdicts"] == {"new": "inconclusive"} and result["counts"][column] == len(inside)
    week = [replace(one, time=times[one.request_id] + 604_800) for one in inside]  # what the plan waits
    result = experiment(*log_of(tmp_path / "week", (shown, week)), AFTER)
    assert result["verdicts"] == {"new": "ship"} and result["counts"]["feedback_late"] == 0


def test_rows_that_are_none_are_a_note(tmp_path: Path) -> None:
    plan, log = log_of(tmp_path, rows(300, lift=0.6))
    with closing(sqlite3.connect(log / "open.sqlite")) as connection:
        connection.execute("UPDATE exposures SET row = 'garbage' WHERE number = 5")
        connection.commit()
    status, out, err = command("ab", plan, "--exposures", log)
    assert status == 0 and err == "" and f"such as {log / 'open.sqlite'}, table exposures, row 5: " in out
