"""`decide --control FILE`: what users get today as one of the lists, and what of its file is refused or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.data.prepared import load_cases, load_item_ids, load_user_ids
from adagrpo.pipeline import Run
from adagrpo.report.decision import decision_table, decision_text

from ..command_line import command


def cases_of(run: Run, split: str) -> dict[str, str]:
    """The logged item of each user's case."""
    prepared = run.path("prepare")
    cases, items, users = load_cases(prepared, split), load_item_ids(prepared), load_user_ids(prepared)
    named = zip(users.gather(cases.users).to_list(), items.gather(cases.targets).to_list(), strict=True)
    return {user: str(item) for user, item in named}


@pytest.fixture(scope="module")
def decided(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any], Path]:
    """A run decided against a file: half of the users get the held-out items and others, the rest nothing."""
    folder = tmp_path_factory.mktemp("control")
    run = world.run(folder / "run", data, decide={"refit": False})
    run.prepare()
    ids = load_item_ids(run.path("prepare")).to_list()
    test, validation = cases_of(run, "test"), cases_of(run, "validation")
    rows = []
    for number, user in enumerate([*test][: len(test) // 2]):
        listed = [ids[number % len(ids)], validation[user], "unheard-of", test[user], *ids[:12]]
        rows += [(user, str(item), rank) for rank, item in reversed([*enumerate(listed, 1)])]
    rows.append(("nobody", str(ids[0]), 1))
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "rank"], orient="row")
    table.write_csv(folder / "today.csv")
    done = command("decide", "--run", folder / "run", "--control", folder / "today.csv", "--json", "--quiet")
    assert done.status == 0, done.err
    return Run.open(folder / "run"), json.loads(done.out), folder


def test_the_file_is_a_list_of_the_table_with_hits_by_hand(decided: tuple[Run, dict[str, Any], Path]) -> None:
    run, content, folder = decided
    ids = {str(item) for item in load_item_ids(run.path("prepare")).to_list()}
    table = pl.read_csv(folder / "today.csv", schema_overrides={"item_id": pl.String, "user_id": pl.String})
    lists: dict[str, list[str]] = {}
    for user, item, _ in table.sort("rank").iter_rows():
        kept = lists.setdefault(user, [])
        if item in ids and item not in kept:
            kept.append(item)
    row = next(row for row in content["contenders"] if row["list"] == "control")
    gains: dict[str, list[float]] = {}
    for split in ("validation", "test"):
        for user, item in cases_of(run, split).items():
            found = lists.get(user, [])[:10]
            gains.setdefault(split, []).append(1 / np.log2(found.index(item) + 2) if item in found else 0.0)
        assert row[split]["ndcg@10"] == pytest.approx(np.mean(gains[split]), abs=1e-6)
    assert 0.2 < np.mean(gains["test"]) < 0.5  # half of the users, at ranks 1 to 3
    assert content["control"] == "control" and content["chosen"] != "control"
    difference = next(r for r in content["contenders"] if r["list"] == content["chosen"])["validation"]["ndcg@10"]
    mean, low, high = content["against_control"]
    assert mean == pytest.approx(difference - row["validation"]["ndcg@10"]) and low < mean < high
    assert decision_table(content).rows[0][0] == "control"
    said = decision_text(content)
    verdict = "beats" if low > 0 else "loses to" if high < 0 else "is not significantly different from"
    assert f"It {verdict} control, what users get today: {mean:+.4f} [{low:+.4f}, {high:+.4f}] NDCG@10" in said
    assert "half of whom get control" in said


def test_what_the_logs_do_not_know_is_counted_with_its_first(decided: tuple[Run, dict[str, Any], Path]) -> None:
    run, content, _ = decided
    said = " ".join(content["doubts"])
    half = len(cases_of(run, "test")) // 2
    assert f"control: 1 of the {half + 1} users of its file are not in the logs and were left out" in said
    assert "the first is 'nobody'" in said
    assert "items of its file are not in the catalogue and were left out, the first is 'unheard-of'" in said
    assert "its file has no list for the users of 50.0 % of the validation cases and 50.0 % of the test cases" in said


def test_the_stored_list_is_served_to_its_users_and_is_an_arm_of_the_plan(
    decided: tuple[Run, dict[str, Any], Path],
) -> None:
    run, content, _ = decided
    measured = pl.read_parquet(run.path("evaluate", "control", "predictions.parquet")).sort("rank")
    lists = dict(measured.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    user, items = next(iter(lists.items()))
    found = run.recommend([[items[-1]], [items[-1]]], arm="control", users=[user, "stranger"])
    kept = [item for item in items if item != items[-1] or not run.config.evaluation.exclude_history]
    assert found.items == [kept[:10], []]
    ruled = Run.open(run.directory, {"rules": {"pins": [{"item": items[-1], "rank": 1}]}})
    assert ruled.recommend([[items[-1]]], arm="control", users=[user]).items == [kept[:10]]  # it is as it is
    plan = (run.directory / "decision.plan.yaml").read_text(encoding="utf-8")
    assert 'control: {serves: "control"}' in plan and content["experiment"] is not None
    again = command("decide", "--run", run.directory, "--json", "--quiet")  # run.yaml keeps the file
    assert json.loads(again.out)["against_control"] == pytest.approx(content["against_control"])


def test_another_export_leaves_the_decision_as_it_is(decided: tuple[Run, dict[str, Any], Path], tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(decided[0].directory, tmp_path / "run"))
    (tmp_path / "today.csv").write_text("user_id,item_id\nu00,13\n", encoding="utf-8")
    changed = Run.open(run.directory, {"decide.control": str(tmp_path / "today.csv")})
    changed.stage("control")
    assert Run.open(run.directory).recommend([[13]]).about["arm"] == decided[1]["chosen"]


def test_a_row_for_each_user_is_read_alike(
    decided: tuple[Run, dict[str, Any], Path], copied: Path, tmp_path: Path
) -> None:
    table = pl.read_csv(decided[2] / "today.csv", infer_schema=False).with_columns(pl.col("rank").cast(pl.Int64))
    lists = table.sort("rank").group_by("user_id", maintain_order=True).agg(items="item_id")
    lists.write_parquet(tmp_path / "today.parquet")
    lists.with_columns(pl.col("items").list.join(" ")).write_csv(tmp_path / "today.csv")
    stored = []
    for name in ("today.parquet", "today.csv"):
        run = Run.open(copied, {"decide.control": str(tmp_path / name)})
        stored.append(pl.read_parquet(run.stage("control") / "lists.parquet").sort("user_id"))
    expected = pl.read_parquet(decided[0].path("control", "lists.parquet")).sort("user_id")
    assert stored[0].equals(expected) and stored[1].equals(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id,item_id\nx1,13\nx2,13\n", "none of its 2 users is in the logs, the first is 'x1'"),
        ("user_id,item_id\nu00,what\n", "none of its 1 items is in the logs, the first is 'what'"),
        ("user,item_id\nu00,13\n", "no column 'user_id'; did you mean 'user'?"),
        ("user_id,item_id,rank\nu00,13,first\n", "row 1: rank is no number"),
        ("user_id,item_id\n,13\n", "row 1: user_id is "),
        ("user_id,items\nu00,13 23\nu00,33\n", "user 'u00' has two rows; it takes one, with the whole list"),
        ("user_id,item_id\n", "holds no list; it takes rows of user_id and item_id, or of user_id and items"),
    ],
)
def test_a_wrong_file_is_refused_in_a_line(copied: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "today.csv").write_text(text, encoding="utf-8")
    done = command("decide", "--run", copied, "--control", tmp_path / "today.csv", "--quiet")
    assert done.status == 2 and said in done.err.strip().splitlines()[-1]
    assert done.err.startswith(f"adagrpo: {tmp_path / 'today.csv'}")


def test_a_file_that_is_not_there_is_no_name_of_a_list(copied: Path) -> None:
    done = command("decide", "--run", copied, "--control", "today.csv")
    assert done.status == 2 and done.err == "adagrpo: --control today.csv: no such file\n"
    done = command("decide", "--run", copied, "--control", "control")
    assert done.status == 2 and "--control control: none of the lists that compete" in done.err
