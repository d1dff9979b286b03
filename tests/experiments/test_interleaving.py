"""Lists of two arms: who owns what, that neither arm is favoured, and what is said of users' clicks."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from adagrpo.errors import UserError
from adagrpo.experiments.interleaving import analyse_interleaving, coins, estimate_preference, team_draft
from adagrpo.experiments.plan import DAY, Plan
from adagrpo.experiments.validity import mismatched_rows
from adagrpo.exposures.exposure_log import Exposure, Feedback
from adagrpo.exposures.exposure_store import EXPOSURE_SCHEMA, FEEDBACK_SCHEMA, LocalExposureLog
from adagrpo.pipeline.experiment import experiment
from adagrpo.report.experiment_page import experiment_page
from adagrpo.storage.hashes import hash_json

CONTENT: dict[str, Any] = {
    "name": "mixed",
    "kind": "interleaving",
    "arms": {"now": {"serves": "sft"}, "new": {"serves": "nll"}},
    "control": "now",
    "salt": "2026-11",
    "start": "2026-11-08",
    "days": 7,
}
PLAN = Plan.model_validate(CONTENT)
AFTER = datetime(2026, 12, 1, tzinfo=UTC)


def every_draft(first: str, second: str, count: int) -> list[list[tuple[str, int]]]:
    """Item and arm of each place, for all coins."""
    drafts = []
    for flips in itertools.product([True, False], repeat=count):
        drafted = team_draft(first, second, count, iter(flips))
        drafts.append([((first, second)[arm][place], arm) for arm, place in drafted])
    return drafts


def test_a_draft_by_hand() -> None:
    assert team_draft("abcd", "bcea", 4, iter([False, True])) == [(1, 0), (0, 0), (0, 2), (1, 2)]  # b a, c e
    assert team_draft("ab", "ab", 5, iter([True, True, True])) == [(0, 0), (1, 1)]
    assert team_draft("", "xy", 2, iter([True, False])) == [(1, 0), (1, 1)]
    assert team_draft("ab", "cd", 0, iter([])) == []


@pytest.mark.parametrize(
    ("first", "second"), [("abcdef", "abcdef"), ("abcdef", "fbdcae"), ("abcdef", "ghijkl"), ("abcd", "bxay")]
)
def test_neither_arm_is_favoured(first: str, second: str) -> None:
    """Over all coins each owns half of each place, and swapped arms with turned coins give the same lists."""
    count = 4
    drafts = every_draft(first, second, count)
    for place in range(count):
        assert np.mean([drafted[place][1] for drafted in drafts]) == 0.5
    mirrored = every_draft(second, first, count)
    assert [[(item, 1 - arm) for item, arm in drafted] for drafted in mirrored][::-1] == drafts
    for drafted in drafts:
        items = [item for item, _ in drafted]
        assert len({*items}) == count
        for arm, ranking in ((0, first), (1, second)):  # each arm's items come in its own order
            own = [ranking.index(item) for item, team in drafted if team == arm]
            assert own == sorted(own)


def test_identical_arms_share_the_credit_of_each_item() -> None:
    for item in "abcd":
        owners = [arm for drafted in every_draft("abcdef", "abcdef", 4) for name, arm in drafted if name == item]
        assert np.mean(owners) == 0.5


def test_coins_are_fair_and_a_request_has_its_own() -> None:
    def first(name: str, count: int) -> list[bool]:
        return list(itertools.islice(coins("salt", name), count))

    assert first("r1", 300) == first("r1", 300) != first("r2", 300)
    assert abs(np.mean([first(f"r{number}", 1)[0] for number in range(2000)]) - 0.5) < 0.045
    assert abs(np.mean(first("r1", 2000)) - 0.5) < 0.045


def log(users: int, taste: float, teams: int = 2, always: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two lists a user of two items; one of the treatment is clicked `taste` times as often."""
    draw, shown, said = np.random.default_rng(0), [], []
    for number in range(2 * users):
        name, arms = f"r{number}", ["now", "new"] if draw.random() < 0.5 and not always else ["new", "now"]
        time = PLAN.begins + DAY * (number % 6) + 5
        shown.append(
            dict.fromkeys(EXPOSURE_SCHEMA)
            | {"request_id": name, "user_hash": f"u{number % users}", "time": time, "slate": ["1", "2"], "teams": arms}
            | {"experiment": "mixed", "deal": "interleaved", "arm": "now+new"}
        )
        for item, arm in zip(("1", "2"), arms, strict=True):
            if draw.random() < 0.3 * (taste if arm == "new" else 1):
                said.append({"request_id": name, "item": item, "kind": "click", "time": time, "value": 1.0})
    return pl.DataFrame(shown, schema=EXPOSURE_SCHEMA), pl.DataFrame(said, schema=FEEDBACK_SCHEMA)


def test_what_is_said_of_clicks() -> None:
    def said(*world: Any, plan: Plan = PLAN, now: datetime = AFTER, **options: Any) -> tuple[str, str]:
        result = analyse_interleaving(plan, *log(*world, **options), now=now)
        return result["verdicts"]["new"], result["reasons"]["new"]

    assert said(400, 1.6)[0] == "preferred" and said(400, 0.5)[0] == "not preferred"
    assert said(400, 1.0)[0] == "inconclusive"
    assert said(400, 1.6, always=True)[1].startswith("new is first in 800 of 800 lists, p = ")
    early = datetime(2026, 11, 12, tzinfo=UTC)
    assert said(400, 1.6, now=early)[1].startswith("the plan looks at the end")
    daily = Plan.model_validate(CONTENT | {"looks": "daily", "answers": 800})
    assert said(400, 2.0, plan=daily, now=early)[0] == "preferred"
    exposures, feedback = log(20, 1.0)
    with pytest.raises(UserError, match="no interleaved list of 'mixed'"):
        analyse_interleaving(PLAN, exposures.with_columns(deal=pl.lit("stopped")), feedback, now=AFTER)


def test_lists_of_one_arm_alone_say_nothing_of_the_coin_and_models_that_change_are_refused() -> None:
    def said(exposures: pl.DataFrame) -> dict[str, Any]:
        return analyse_interleaving(PLAN, exposures, feedback, now=AFTER)

    exposures, feedback = log(400, 1.6)
    alone = pl.int_range(pl.len()) % 5 == 0  # there the treatment has no list
    short = exposures.with_columns(teams=pl.when(alone).then(pl.lit(["now", "now"])).otherwise("teams"))
    result = said(short)
    assert result["verdicts"]["new"] != "invalid" and abs(result["first_place"]["treatment"] - 0.5) < 0.06
    later = pl.col("time") > PLAN.begins + DAY
    changed = exposures.with_columns(model_version=pl.when(later).then(pl.lit("a+c")).otherwise(pl.lit("a+b")))
    assert said(changed)["reasons"]["new"].startswith("lists are of 2 pairs of models, of a+c from ")


def test_the_preference_is_a_mean_over_users_who_clicked() -> None:
    found = estimate_preference(pl.DataFrame({"control": [0, 3, 1], "treatment": [0, 1, 0]}))
    assert found is not None and found.users == 2
    assert found.share == pytest.approx((0.25 + 0) / 2) and found.error == pytest.approx(0.125)
    assert estimate_preference(pl.DataFrame({"control": [0, 3], "treatment": [0, 1]})) is None


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"arms": {"a": {"serves": "sft"}, "now": {"serves": "sft"}, "c": {"serves": "sft"}}}, "two are interleaved"),
        ({"metrics": {"clicks": {"sum": "click"}}}, "only `credit` is counted"),
        ({"kind": "ab"}, "metrics: none"),
    ],
)
def test_plans_that_are_of_no_kind(changes: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Plan.model_validate(CONTENT | changes)


def test_requests_without_a_list_are_counted_and_say_nothing_of_the_coin() -> None:
    exposures, feedback = log(400, 1.6)
    plain = analyse_interleaving(PLAN, exposures, feedback, now=AFTER)
    failed = exposures.head(80).with_columns(
        request_id=pl.col("request_id") + "-failed",
        source=pl.lit("failed"),
        teams=None,
        slate=pl.lit([], pl.List(pl.String)),
    )
    empty = failed.tail(5).with_columns(source=pl.lit("policy"), request_id=pl.col("request_id") + "-empty")
    found = analyse_interleaving(
        PLAN, pl.concat([exposures, failed.cast(EXPOSURE_SCHEMA), empty.cast(EXPOSURE_SCHEMA)]), feedback, now=AFTER
    )
    assert plain["without_list"] == 0 and found["without_list"] == 85
    assert found | {"without_list": 0} == plain and plain["verdicts"] == {"new": "preferred"}


def test_an_arm_that_was_stopped_is_never_preferred() -> None:
    rows, stops = log(400, 1.6), {"new": PLAN.begins + DAY}
    found = analyse_interleaving(PLAN, *rows, now=AFTER, stops=stops)
    assert found["verdicts"] == {"new": "inconclusive"} and [*found["stopped"]] == ["new"]
    assert found["reasons"]["new"].startswith(f"it was stopped on {found['stopped']['new']}, and what is said")
    assert analyse_interleaving(PLAN, *log(400, 0.5), now=AFTER, stops=stops)["verdicts"] == {"new": "not preferred"}
    assert analyse_interleaving(PLAN, *rows, now=AFTER, stops={"now": PLAN.begins + DAY})["verdicts"] == {
        "new": "preferred"
    }


def test_few_users_prefer_nothing() -> None:
    """Two users who clicked the same arm agree exactly, and prove nothing."""
    found = analyse_interleaving(PLAN, *log(25, 50.0), now=AFTER)
    assert found["preference"] is None and found["daily"] == []
    assert found["verdicts"] == {"new": "inconclusive"} and found["reasons"]["new"].endswith(
        " users clicked, of 30 needed"
    )


def test_a_credit_that_the_log_does_not_have_is_said() -> None:
    """Nobody clicked, which a misspelt kind looks like."""
    found = analyse_interleaving(PLAN.model_copy(update={"credit": "clicks"}), *log(400, 1.6), now=AFTER)
    assert found["verdicts"] == {"new": "inconclusive"}
    assert found["reasons"]["new"] == "the log has no feedback of kind 'clicks' (credit); its kinds are click"


def test_clicks_before_their_list_or_long_after_it_and_a_log_of_another_plan_prefer_nothing() -> None:
    exposures, feedback = log(400, 1.6)
    for shift, column in ((-11 * DAY, "feedback_early"), (8 * DAY, "feedback_late")):
        found = analyse_interleaving(PLAN, exposures, feedback.with_columns(pl.col("time") + shift), now=AFTER)
        assert found["verdicts"] == {"new": "inconclusive"} and found[column] == len(feedback)
    assert [one.count_name for one in mismatched_rows(PLAN, "a" * 64, 0.0, exposures)] == ["answers_of_other_plan"]
    own = exposures.with_columns(salt_version=pl.lit("a" * 12))
    assert mismatched_rows(PLAN, "a" * 64, 0.0, own) == []
    found = analyse_interleaving(PLAN, own, feedback, now=AFTER, mismatch="of another plan")
    assert found["verdicts"] == {"new": "invalid"} and found["preference"] is None


def test_the_verb_and_its_page(tmp_path: Path) -> None:
    exposures, feedback = log(400, 1.6)
    digest = hash_json(PLAN.model_dump(mode="json"))
    store = LocalExposureLog(tmp_path / "log")
    known = {"model_version": "m", "catalog_version": "c", "source": "policy", "salt_version": digest[:12]}
    store.write([Exposure(**(row | known | {"key_version": "k"})) for row in exposures.iter_rows(named=True)])
    store.feedback([Feedback(**row) for row in feedback.iter_rows(named=True)])
    store.close()
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(CONTENT), encoding="utf-8")
    result = experiment(tmp_path / "plan.yaml", tmp_path / "log", AFTER)
    assert result["verdicts"] == {"new": "preferred"} and result["notes"] == []
    assert "clicks too long after it, left out" in experiment_page(result)
