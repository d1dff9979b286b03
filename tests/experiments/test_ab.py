"""An experiment from the rows of an exposure log to its verdict, by the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo import cli
from adagrpo.experiments.allocation import assign
from adagrpo.experiments.plan import DAY
from adagrpo.experiments.units import users_of
from adagrpo.pipeline.experiment import experiment
from adagrpo.serving.exposure_log import Exposure, Feedback
from adagrpo.serving.exposure_parts import EXPOSURE_SCHEMA
from adagrpo.serving.exposure_store import LocalExposureLog

from .two_arms import AFTER, CONTENT, NEVER, PLAN, changed, rows, tables


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
    assert adagrpo(*given)[0] == 0  # into a folder of its own
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "experiment.json").write_text("mine", encoding="utf-8")
    status, _, err = adagrpo(*given[:5], tmp_path / "else")
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
