"""The refit of the chosen list: fitted on every interaction, served by default, never by a half or an old one."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.data.prepared import load_training, load_whole
from adagrpo.errors import UserError
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline import run as run_module
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.refit import make_refit, refit_of
from adagrpo.pipeline.serve import Operation, _Wanted
from adagrpo.pipeline.status import status
from adagrpo.storage.marks import is_marked

from ..command_line import command
from ..consoles import Heard

MORE = 32  # users of three interactions: training has one of each, and nothing to learn from it


@pytest.fixture(scope="module")
def decided(world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("refit")
    more = {f"v{user:02d}": [10 * ((user + step) % 30) + 3 for step in range(3)] for user in range(MORE)}
    larger = type(world)(world.sequences | more)
    larger.write(folder / "data")
    run = larger.run(folder / "run", folder / "data", decide={"margin": 0.0})
    return run, run.decide()


def own_files(run: Run) -> dict[str, bytes]:
    paths = (path for path in run.directory.rglob("*") if path.is_file() and "refit" not in path.parts)
    return {path.relative_to(run.directory).as_posix(): path.read_bytes() for path in paths}


def test_every_interaction_is_fitted_and_no_case_is_left(
    world: Any, data: Path, tmp_path: Path, decided: tuple[Run, dict[str, Any]]
) -> None:
    run = decided[0]
    refit = refit_of(run)
    before = own_files(run)
    make_refit(run, "item_knn")  # of the parts of the chosen list, so that nothing is made
    assert own_files(run) == before
    of_training, of_all = (RunData(one) for one in (run, refit))
    whole = load_whole(run.path("prepare"))
    assert load_training(refit.path("prepare")).values.tolist() == whole.values.tolist()
    assert load_whole(refit.path("prepare")).values.tolist() == whole.values.tolist()
    assert refit.content("prepare", "summary.json")["test_cases"] == 0
    logged = pl.read_csv(run.data / "log.csv").sort("user_id", "timestamp")
    counted = Counter(logged["item_id"].to_list())
    counts = ListMaker(Models(of_all)).counts()
    assert dict(zip(of_all.item_ids.to_list(), counts.tolist(), strict=True)) == counted
    assert counts.sum() - ListMaker(Models(of_training)).counts().sum() == 2 * (60 + MORE)  # validation and test
    sequences = logged.group_by("user_id").agg("item_id")["item_id"].to_list()
    follows = Counter(pair for items in sequences for pair in pairwise(items))
    near = ListMaker(Models(of_all)).matrix("successors").toarray()
    number = {item: place for place, item in enumerate(of_all.item_ids.to_list())}
    known = {pair for pair in follows if near[number[pair[0]], number[pair[1]]] > 0}
    assert known == {(one, other) for one, other in follows if one != other}


def test_each_fit_takes_as_many_epochs_as_validation_found_best(decided: tuple[Run, dict[str, Any]]) -> None:
    run, content = decided
    assert content["chosen"].startswith("fuse")
    for name in ("sft", "ranker"):
        before = run.content(name, "best", "checkpoint.json")["step"]
        rows = (run.path(name) / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        after = (refit_of(run).path(name) / "steps.jsonl").read_text(encoding="utf-8").splitlines()
        # 62 users in batches of 16 are 4 steps an epoch, 94 users 6
        assert len(after) == before * 6 / 4 and json.loads(rows[-1])["step"] == 8
        assert refit_of(run).content(name, "best", "checkpoint.json") == {"step": len(after)}
        said = (refit_of(run).path(name) / "validation.jsonl").read_text(encoding="utf-8").splitlines()
        assert all(json.loads(row).keys() == {"step"} for row in said)


def test_codes_and_fused_weights_stay(decided: tuple[Run, dict[str, Any]]) -> None:
    refit = refit_of(decided[0])
    made = {path.name for path in refit.directory.iterdir() if path.is_dir() and path.name != ".work"}
    kept = decided[0].content("fuse", "sft", "weights.json")[decided[1]["chosen"]]["weights"]
    assert made == {"prepare", "vectors", "sft", "ranker", "item_knn"} | ({"ease"} & set(kept))
    assert refit.path("fuse", "sft", "weights.json") == decided[0].path("fuse", "sft", "weights.json")
    assert RunData(refit).catalog.codes.equal(RunData(decided[0]).catalog.codes)


def test_the_refit_list_answers_and_says_so(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run, content = decided
    lists = {measured: run.recommend([[3, 13, 23]], as_measured=measured) for measured in (False, True)}
    assert [lists[measured].about["refit"] for measured in (False, True)] == [True, False]
    assert lists[False].scores != lists[True].scores
    assert lists[False].about["versions"]["model"] != lists[True].about["versions"]["model"]
    assert run.recommend([[3, 13, 23]], arm=content["chosen"]).scores == lists[False].scores
    assert not run.recommend([[3, 13, 23]], arm="item_knn").about["refit"]  # only the chosen one is refit
    by_service = _Wanted(run, ListOptions()).load(Operation())
    assert by_service.about["refit"] and by_service.about["step"] == 12
    assert not _Wanted(run, ListOptions(as_measured=True)).load(Operation()).about["refit"]
    (tmp_path / "users.csv").write_text("user_id\nu00\nv00\nnobody\n", encoding="utf-8")
    for options, marked in (((), True), (("--as-measured",), None)):
        out = tmp_path / f"lists{len(options)}"
        given = ("--run", run.directory, "--users", tmp_path / "users.csv", "--out", out)
        answer = command("recommend", *given, "--json", *options)
        assert answer.status == 0 and ("as refit on all interactions" in answer.err) == bool(marked)
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        assert summary.get("refit") is marked and summary["unknown_users"] == 1
    logged = pl.read_csv(run.data / "log.csv").filter(pl.col("user_id") == "u00").sort("timestamp")["item_id"].to_list()
    by_file = pl.read_parquet(tmp_path / "lists0" / "part-00000.parquet")["items"][0].to_list()
    assert by_file == run.recommend([logged], users=["u00"]).items[0]


def test_a_new_version_of_the_catalogue_is_of_both(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(decided[0].directory, tmp_path / "run"))
    first = run.recommend([[3, 13, 23]]).items[0][0]
    run.update_catalog(delist=[first])
    for measured in (False, True):
        lists = run.recommend([[3, 13, 23]], as_measured=measured)
        assert lists.about["catalog_version"].startswith("0001-") and lists.about["refit"] == (not measured)
        assert first not in lists.items[0]


def test_a_refit_that_was_killed_half_way_is_not_served_and_goes_on(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(decided[0].directory, tmp_path / "run")
    as_measured = decided[0].recommend([[3, 13]], as_measured=True).scores
    whole = decided[0].recommend([[3, 13]]).scores
    shutil.rmtree(copied / "refit")
    make = run_module.make_refit.__globals__["make"]

    def killed(run: Any, name: str, declared: Any) -> Path:
        if name == "ranker":
            raise KeyboardInterrupt
        found: Path = make(run, name, declared)
        return found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("adagrpo.pipeline.refit.make", killed)
        Run.open(copied).decide()
    heard = Heard()
    lists = Run.open(copied, console=heard).recommend([[3, 13]])
    assert lists.scores == as_measured and not lists.about["refit"]
    lacks = "is not finished: it has no ranker"
    said = f"note: the refit of {decided[1]['chosen']} {lacks}, so the list is served as measured;"
    assert heard.notes == [f"{said} run `adagrpo decide --run {copied}`"]
    assert status(copied)["refit"] == {"state": "not served", "why": f"it {lacks}"}
    Run.open(copied).decide()
    events = (copied / "refit" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    made = [(row["stage"], row["event"]) for row in map(json.loads, events)]
    ended = [name for name, event in made if event == "end"]
    kept = decided[0].content("fuse", "sft", "weights.json")[decided[1]["chosen"]]["weights"]
    fitted = ["prepare", "vectors", "sft", "ranker", "item_knn", *(["ease"] if "ease" in kept else [])]
    assert ended == fitted
    assert Run.open(copied).recommend([[3, 13]]).scores == whole and status(copied)["refit"]["state"] == "done"


@pytest.mark.slow
def test_a_refit_of_what_has_changed_since_is_said_and_not_served(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(decided[0].directory, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_refit", lambda run, chosen: None)
        Run.open(copied, {"ranker.fit.epochs": 1}).ranker()
        Run.open(copied).decide()
    heard = Heard()
    run = Run.open(copied, console=heard)
    assert not run.recommend([[3, 13]]).about["refit"]
    assert "is stale: its ranker is stale (made with ranker.fit.epochs=2, run.yaml says 1)" in heard.notes[0]
    run.decide()
    assert run.recommend([[3, 13]]).about["refit"] and "ranker" in refit_events(copied)


def refit_events(directory: Path) -> list[str]:
    events = (directory / "refit" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["stage"] for row in map(json.loads, events) if row["event"] == "end"]


def test_a_run_moved_without_its_logs_serves_its_refit(decided: tuple[Run, dict[str, Any]], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(decided[0].directory, tmp_path / "run"))
    logs = decided[0].data / "log.csv"
    hidden = logs.rename(logs.with_name("hidden.csv"))
    try:
        assert Run.open(moved).recommend([[3, 13]]).about["refit"]
    finally:
        hidden.rename(logs)


@pytest.mark.slow
def test_without_the_key_nothing_is_refit(world: Any, data: Path, tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", data, decide={"refit": False})
    assert "refit" not in run.decide() and not is_marked(run.directory / "refit")
    heard = Heard()
    opened = Run.open(run.directory, console=heard)
    assert not opened.recommend([[3]]).about["refit"] and heard.notes == []


def test_a_refit_is_no_run_to_be_worked_in(decided: tuple[Run, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="refit: holds a refit, not a run"):
        Run.open(decided[0].directory / "refit")


@pytest.mark.parametrize("split", [{"kind": "temporal", "validation_from": 1050, "test_from": 1070}, {"users": 20}])
def test_other_splits_are_refit_whole(world: Any, data: Path, tmp_path: Path, split: dict[str, Any]) -> None:
    run = world.run(tmp_path / "run", data, data={"logs": ["log.csv"], "split": split})
    for name in ("prepare", "tokenize", "sft", "ranker"):
        getattr(run, name)()
    run.stage("item_knn")
    assert make_refit(run, "item_knn")["interactions"] == sum(map(len, world.sequences.values()))
    assert len(load_training(refit_of(run).path("prepare")).values) == sum(map(len, world.sequences.values()))


def test_trees_of_a_refit_are_as_many_as_validation_found_best(world: Any, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    trees = {"trees": 6, "leaves": 4, "minimum_leaf": 5}
    run = world.run(tmp_path / "run", data, reward={"kind": "lambdarank"}, ranker={"lambdarank": trees})
    for name in ("prepare", "tokenize", "sft", "ranker"):
        getattr(run, name)()
    make_refit(run, "reward")
    counts = [one.content("ranker", "lambdarank", "metrics.json") for one in (run, refit_of(run))]
    assert counts[0]["trees"] == counts[1]["trees"] and counts[1]["ndcg@10_among_sampled"] is None
    assert counts[1]["gain"] != counts[0]["gain"]


def test_all_that_was_shown_is_fitted_also_after_the_last_choice(world: Any, tmp_path: Path) -> None:
    rows = [(1, 10, 1), (2, 20, 1), (3, 30, 0), (4, 30, 1), (5, 10, 0)]  # time, item, clicked
    lines = [f"{user},{item},{time},{clicked}" for user in "abc" for time, item, clicked in rows]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,clicked", *lines, ""]), encoding="utf-8")
    run = world.run(tmp_path / "run", tmp_path, data={"columns": {"clicked": "clicked"}})
    assert run.prepare()["impressions"] == 3  # of each user the one before the two held-out clicks
    assert make_refit(run, "popularity")["interactions"] == 9
    assert refit_of(run).content("prepare", "summary.json")["impressions"] == 15
