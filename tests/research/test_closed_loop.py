"""The loop on a tiny market: rounds over HTTP, an A/B in one market, a round after a kill, the watch over its log."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from adagrpo.cli import app
from adagrpo.exposures.exposure_store import parts_of, read_parts
from adagrpo.pipeline import Run
from adagrpo.pipeline.versions import catalog_versions
from research.closed_loop.canaries import lost_until
from research.closed_loop.closing import close_loop
from research.closed_loop.loop_summary import reference_of, visits_of
from research.closed_loop.plan import read_loop_plan
from research.closed_loop.round_measures import ServedLists
from research.closed_loop.rounds import Market

RECIPE = """
name: tiny
max_history: 6
threads: 1
data:
  marketplace: {users: 60, items: 90, categories: 4, styles: 2, steps: 6, later_share: 0.1, dwell_seconds: 20}
tokenizer: {vectors: {attributes: 1.0}, levels: 2, codes: 12, width: 8, quantizer: balanced_kmeans, collisions: nearest}
policy: {width: 16, layers: 1, heads: 2, decoder_hidden: 16}
sft: {epochs: 1, batch_size: 64, validations: 1, validation_users: 20}
ranker: {width: 8, layers: 1, negatives: 8, fit: {epochs: 1, batch_size: 64, validations: 1, validation_users: 20}}
objective: {num_generations: 4, pressure_steps: 1}
evaluation: {beam_width: 10, exclude_history: true, precision: float32}
train: {fit: {epochs: 1, batch_size: 64, validations: 1, validation_users: 20}}
"""
PLAN = """
name: tiny
recipe: recipe.yaml
worlds: {a: {seed: 1}}
markets:
  none: {}
  ab: {arms: [nll, mixture-pressure1], explore: 0.5}
  canary: {arms: [nll], canary: {share: 0.5, stop_on: []}}
rounds: 1
days: 2
start_days: 2
visits: 0.5
probes: 10
"""


pytestmark = pytest.mark.slow  # a loop of a few rounds is played


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "plan.yaml").write_text(PLAN)
    return folder / "plan.yaml"


@pytest.fixture(scope="module")
def loop(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "out"
    assert close_loop(plan, out)["rows"] == 10
    return out


def rows(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_each_round_of_each_arm_is_measured(loop: Path) -> None:
    found = [row for row in rows(loop) if row["market"] != "canary"]
    assert [(row["market"], row["round"], row["arm"]) for row in found] == [
        *(("none", 0, "start"), ("none", 1, "start")),
        *(("ab", 0, "nll"), ("ab", 0, "mixture-pressure1"), ("ab", 1, "nll"), ("ab", 1, "mixture-pressure1")),
    ]
    for row in found:
        assert 0 < float(str(row["utility"])) < 1 and 0 < float(str(row["gini"])) < 1
    assert (loop / "loop.svg").read_text().startswith("<svg")


def test_a_day_on_which_nobody_came_has_no_lists() -> None:
    nothing: Any = None  # no list asks anything of the population
    shown = ServedLists(["i00000", "i00001"], nothing)
    nobody = np.empty(0, np.int64)
    outcomes = (np.empty((0, 2), bool), np.empty(0), np.empty((0, 2)), np.empty(0))
    shown.add(0, nobody, nobody.reshape(0, 2), [])
    shown.outcomes(*outcomes)
    shown.add(1, np.array([7]), np.array([[1, 0]]), [["i00001"]])
    shown.outcomes(np.array([[True, False]]), np.array([3.0]), np.array([[0.5, 0.25]]), np.array([0.5]))
    assert shown.table.rows() == [(1, 7, [1, 0], True, 0.375, 0.5, 3.0)]
    empty = pl.DataFrame(schema=dict.fromkeys(("day", "utility", "usual"), pl.Float64))
    assert lost_until(empty, 3) is None


def test_the_log_holds_both_arms_their_days_and_drawn_lists(loop: Path) -> None:
    exposures, feedback = read_parts(parts_of(loop / "a" / "ab" / "exposures"))
    served = exposures.filter(pl.col("arm") != "platform")
    assert set(served["arm"]) == {"nll", "mixture-pressure1"}
    assert set(served["experiment"]) == {"tiny"}
    assert served.group_by("user_hash").agg(pl.col("arm").n_unique())["arm"].max() == 1
    assert 0.3 < (served["source"] == "sampled").mean() < 0.7  # type: ignore[operator]
    assert set((served["time"] // 86_400).cast(int)) == {15, 16, 17, 18}  # the platform's log has 15 days
    assert feedback.filter(pl.col("kind") == "dwell")["value"].min() > 0  # type: ignore[operator]
    assert served["request_id"].n_unique() == len(served)


def test_the_same_lists_are_shown_in_round_0_and_items_come_later(loop: Path) -> None:
    begin = Run.open(loop / "a" / "begin" / "run")
    listed = [int(version.codes.listed.sum()) for version in catalog_versions(begin)]
    assert listed == [90, 81, 90]
    before = read_parts(parts_of(loop / "a" / "none" / "exposures"))[0].filter(pl.col("time") < 17 * 86_400)
    later = {f"i{item:05d}" for item in begin_later(loop)}
    assert not set(before["slate"].explode()) & later


def begin_later(loop: Path) -> list[int]:
    table = pl.read_parquet(loop / "a" / "begin" / "wave-0001.parquet")
    return [int(name[1:]) for name in table["item_id"]]


def test_a_round_that_was_killed_is_played_again_to_the_same_row(plan: Path, loop: Path) -> None:
    before = rows(loop)
    log = loop / "a" / "ab" / "exposures"
    answers = len(read_parts(parts_of(log))[0])
    (loop / "a" / "ab" / "rounds" / "001" / "row.json").unlink()
    close_loop(plan, loop)
    # the same lists are on record once; only the part of the log that a round ends with has another number
    assert [{**row, "through": 0} for row in rows(loop)] == [{**row, "through": 0} for row in before]
    assert len(read_parts(parts_of(log))[0]) == answers


def test_a_market_begins_beside_files_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "open.sqlite").write_text("rows")
    plan, beginning = SimpleNamespace(rounds=-1), SimpleNamespace(exposures=tmp_path / "log")
    market = Market(plan, SimpleNamespace(arms=(), canary=None), beginning, tmp_path / "market")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):  # it was killed while it copied
        Market(plan, market.market, SimpleNamespace(exposures=tmp_path / "gone"), market.folder).play()  # type: ignore[arg-type]
    for name in ("exposures.copied", "exposures.old"):
        (market.folder / name).mkdir()
        (market.folder / name / "mine.txt").write_text("mine")
    market.play()
    assert (market.exposures / "open.sqlite").read_text() == "rows"
    assert (market.folder / "exposures.copied" / "mine.txt").read_text() == "mine"
    names = {"exposures", "exposures.copied", "exposures.old", ".adagrpo", ".lock"}
    assert {path.name for path in market.folder.iterdir()} == names


def test_a_market_is_held_against_one_that_explores_as_much(plan: Path) -> None:
    content, _ = read_loop_plan(plan)
    assert reference_of(content, "ab") == "none"
    still = {
        "none": content.markets["none"],
        "none-explore": content.markets["none"].model_copy(update={"explore": 0.5}),
    }
    both = content.model_copy(update={"markets": {**still, "ab": content.markets["ab"]}})
    assert reference_of(both, "ab") == "none-explore"


def test_watch_reads_the_log_of_a_market_by_day(loop: Path) -> None:
    run = loop / "a" / "ab" / "rounds" / "001" / "nll"
    options = ["--exposures", str(loop / "a" / "ab" / "exposures"), "--baseline", "2", "--window", "1", "--since", "15"]
    answer = CliRunner().invoke(app, ["watch", *options, "--run", str(run), "--json"])
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert [row["day"] for row in result["days"]] == [17, 18]
    assert set(result["signs"]) == {"reward_up_feedback_down", "feedback_down", "calibration", "concentration"}
    assert set(result["invalid"]) == {"sft", "nll"}
    shown = pl.read_parquet(loop / "a" / "ab" / "rounds" / "001" / "visits.parquet").filter(pl.col("day") == 3)
    assert result["days"][1]["lists"] == len(shown)
    assert result["days"][1]["clicked"] == pytest.approx(shown["clicked"].mean())
    # both arms have one ranker, and what it expects of a list is what the loop has noted
    assert result["days"][1]["predicted"] == pytest.approx(shown["predicted"].drop_nans().mean(), rel=1e-4)
    text = CliRunner().invoke(app, ["watch", *options, "--arm", "nll", "--days"])
    assert text.exit_code == 0 and "concentration" in text.stdout
    wrong = CliRunner().invoke(app, ["watch", *options, "--arm", "other"])
    assert "it has mixture-pressure1, nll, platform" in str(wrong.exception)


def test_a_canary_is_served_to_its_share_and_held_against_the_rest(plan: Path, loop: Path) -> None:
    content, _ = read_loop_plan(plan)
    visits = pl.read_parquet(loop / "a" / "canary" / "rounds" / "001" / "visits.parquet")
    assert set(visits["arm"]) == {"nll", "rest"} and 0.2 < (visits["arm"] == "nll").mean() < 0.8  # type: ignore[operator]
    (row,) = [json.loads(line) for line in (loop / "canaries.jsonl").read_text().splitlines()]
    usual = visits_of(loop, "a", "none")
    assert usual is not None
    both = visits.join(usual.select("user", "day", pl.col("utility").alias("usual")), on=["user", "day"])
    assert row["lost"] == pytest.approx(1 - both["utility"].sum() / both["usual"].sum())
    own = both.filter(pl.col("arm") == "nll")
    assert row["truth"] == pytest.approx(own["utility"].sum() / own["usual"].sum() - 1)
    assert not row["stopped"]  # nothing may stop it
    # who keeps the policy before is shown what nobody's training has changed
    rest = visits.filter(pl.col("arm") == "rest").join(usual, on=["user", "day"])
    assert (rest["utility"] == rest["utility_right"]).all()
    # so the next round goes on from this round's policy; after a stop it would not
    market = Market(content, content.markets["canary"], None, loop / "a" / "canary")  # type: ignore[arg-type]
    assert market._kept(2) == market.path(1, "nll", "train", "nll", "final")
    told = (loop / "a" / "canary" / "rounds" / "001" / "row.json").read_text()
    (loop / "stopped" / "rounds" / "001").mkdir(parents=True)
    (loop / "stopped" / "rounds" / "001" / "row.json").write_text(told.replace('"stopped": false', '"stopped": true'))
    begun = SimpleNamespace(run=Run.open(loop / "a" / "begin" / "run"), name="a")
    stopped = Market(content, content.markets["canary"], begun, loop / "stopped")  # type: ignore[arg-type]
    assert stopped._kept(2) == begun.run.path("sft", "best")


def test_watch_holds_an_arm_against_another_of_the_same_days(loop: Path) -> None:
    options = ["--exposures", str(loop / "a" / "canary" / "exposures"), "--window", "2"]
    answer = CliRunner().invoke(app, ["watch", *options, "--arm", "nll", "--against", "rest", "--json"])
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)
    assert [row["day"] for row in result["days"]] == [15, 16, 17, 18]
    visits = pl.read_parquet(loop / "a" / "canary" / "rounds" / "001" / "visits.parquet")
    assert result["days"][3]["lists"] == (visits["arm"] == "nll").sum()
    alone = CliRunner().invoke(app, ["watch", *options, "--against", "rest"])
    assert "--against: name another arm by --arm, to compare with 'rest'" in str(alone.exception)
    apart = CliRunner().invoke(app, ["watch", *options, "--arm", "nll", "--against", "platform"])
    assert "no such day; give arms that were served together" in str(apart.exception)
