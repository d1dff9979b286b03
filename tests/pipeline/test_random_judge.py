"""What was shown at random judges lists: each orders it as it orders what it serves; a worse one is not taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from adagrpo.data.prepared import SHOWN_LATER, load_item_ids, load_user_ids, load_whole
from adagrpo.errors import UserError
from adagrpo.evaluation.exposure_dependence import independent
from adagrpo.lists import Query
from adagrpo.pipeline import Run
from adagrpo.pipeline.decide import choose
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker
from adagrpo.pipeline.outputs import DECIDED, is_stale
from adagrpo.pipeline.random_judge import Independence, RandomOrder, clicks_of_lists, independence
from adagrpo.pipeline.staleness import parts_of
from adagrpo.report.decision import decision_table, decision_text
from adagrpo.statistics import all_pairs

REWARD = {"kind": "feature", "name": "next_last"}
NAMES = ("popularity", "item_knn", "ranker", "reward", "sft", "rerank", "fuse-without-reward", "fuse")


@pytest.fixture(scope="module")
def decided(world: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    run = world.run(tmp_path_factory.mktemp("decided") / "run", data, reward=REWARD)
    return run, run.decide()


@pytest.mark.parametrize("name", NAMES)
def test_what_orders_given_items_is_what_orders_the_list(decided: tuple[Run, dict[str, Any]], name: str) -> None:
    run, _ = decided
    data = RunData(run)
    ((_, served),) = ListMaker(Models(data)).recommenders([name])
    histories = [data.training.row(user).tolist() for user in range(5)]
    ids = {item: number for number, item in enumerate(load_item_ids(data.prepared).to_list())}
    lists = served.recommend([Query(history) for history in histories])
    items = torch.full((5, max(len(found.items) for found in lists) + 1), -1)
    for row, found in enumerate(lists):
        items[row, : len(found.items)] = torch.tensor([ids[item] for item in found.items])
    scores = served.order_scores([Query(history) for history in histories], items)
    for row, found in enumerate(lists):
        assert scores[row, : len(found.items)].tolist() == pytest.approx(found.scores, abs=2e-2)  # bfloat16
        assert (scores[row, len(found.items) :] == -torch.inf).all()


def test_a_list_that_orders_random_exposures_worse_is_not_taken(
    decided: tuple[Run, dict[str, Any]], world: Any, data: Path, tmp_path: Path
) -> None:
    """Every user clicks the half of eight random items that the starting policy prefers: no list orders them better."""
    first, before = decided
    assert before["random_users"] == 0 and not any("random" in row for row in before["contenders"])
    folder = tmp_path / "run"
    shutil.copytree(first.directory, folder)
    found, draw = RunData(first), np.random.default_rng(0)
    whole = load_whole(found.prepared)
    ((_, policy),) = ListMaker(Models(found)).recommenders(["sft"])
    users, items = load_user_ids(found.prepared).to_list(), load_item_ids(found.prepared).to_list()
    rows: list[tuple[str, Any, bool]] = [("nobody", items[0], True), (users[0], "nothing", True)]
    expected = {}
    counts = found.training.counts(len(items))
    for number, user in enumerate(users):
        history = found.training.row(number)
        if not len(history):
            continue
        rows += [
            (user, items[item], True) for item in {*whole.row(number).tolist()}
        ]  # the log holds them, held out too
        shown = draw.permutation(np.setdiff1d(np.arange(len(items)), whole.row(number)))[:8]
        scores = policy.order_scores([Query(history.tolist())], torch.from_numpy(shown)[None])[0]
        clicked = (scores > scores.median()).numpy()
        rows += [(user, items[item], bool(yes)) for item, yes in zip(shown, clicked, strict=True)]
        pairs = counts[shown[clicked]][:, None] - counts[shown[~clicked]]
        expected[number] = float(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    table = pl.DataFrame([(user, str(item), yes) for user, item, yes in rows], orient="row")
    table.columns = ["user_id", "item_id", "clicked"]
    table.write_parquet(tmp_path / "random.parquet")
    random = {"logs": [str(tmp_path / "random.parquet")], "columns": {"clicked": "clicked"}}
    run = world.run(folder, data, reward=REWARD, data={"random": random})
    run.prepare()
    assert is_stale(run, DECIDED, parts_of(run)) == "prepare was made again since"
    content = run.decide()
    assert "sft" not in run.made and "fuse/sft" not in run.made  # nothing is fitted on it
    judged = {row["list"]: row["random"] for row in content["contenders"]}
    assert content["random_users"] == len(expected)
    assert judged["sft"]["auc"] == pytest.approx(1.0)
    assert judged["popularity"]["auc"] == pytest.approx(np.mean([*expected.values()]))
    worse = [name for name, row in judged.items() if row["against sft"][2] < 0]
    assert {"popularity", "item_knn"} <= {*worse} and content["chosen"] not in worse
    said = next(doubt for doubt in content["doubts"] if "shown at random" in doubt)
    assert all(f"{name} by " in said for name in worse)
    assert "AUC on random" in decision_table(content).header and said in decision_text(content)
    assert content["chosen"] == content["best"] or content["why"].startswith("it loses at most")
    summary = run.prepare()
    assert (summary["random_exposures"], summary["random_exposures_unknown"]) == (8 * len(expected), 2)
    logged = sum(len({*whole.row(number).tolist()}) for number in expected)
    assert summary["random_exposures_logged"] == summary["random_clicks_logged"] == logged


def judge_by_shown_later(monkeypatch: pytest.MonkeyPatch, auc: dict[str, Any]) -> None:
    monkeypatch.setattr(
        "adagrpo.pipeline.decide.random_order",
        lambda data, lists, judge="random.parquet": RandomOrder(auc) if judge == SHOWN_LATER else None,
    )


def test_a_list_that_orders_later_impressions_better_is_named_and_not_chosen(
    decided: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = decided
    assert before["chosen"] != "item_knn" and before["shown_later_users"] == 0
    auc = {row["list"]: np.full(40, 0.5) for row in before["contenders"]} | {"item_knn": np.full(40, 0.9)}
    judge_by_shown_later(monkeypatch, auc)
    content = Run.open(first.directory).decide()
    assert content["chosen"] == before["chosen"]
    assert {row["list"]: row["shown_later"]["auc"] for row in content["contenders"]}["item_knn"] == pytest.approx(0.9)
    (said,) = [doubt for doubt in content["doubts"] if "what 40 users were shown" in doubt]
    assert said.startswith("item_knn orders") and f"than {before['chosen']}, by +40.0 [+40.0, +40.0] points" in said
    assert "AUC of shown" in decision_table(content).header and said in decision_text(content)


@pytest.mark.slow
def test_where_what_is_shown_does_not_depend_on_the_user_its_clicks_choose(
    decided: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = decided
    names = [row["list"] for row in before["contenders"]]
    judge_by_shown_later(monkeypatch, {name: np.full(40, 0.7 if name == "popularity" else 0.6) for name in names})
    for share, clicks, chosen in ((0.5, 0.3, "popularity"), (0.5, 0.1, before["chosen"]), (0.7, 0.3, before["chosen"])):
        told = Independence(*independent({"item_knn": share + np.tile([-0.01, 0.01], 500)}))
        monkeypatch.setattr("adagrpo.pipeline.decide.independence", lambda data, lists, told=told: told)
        of_lists = {name: clicks if name == "popularity" else 0.2 for name in names}
        monkeypatch.setattr("adagrpo.pipeline.decide.clicks_of_lists", lambda *_, found=of_lists: found)
        content = Run.open(first.directory).decide()
        text = decision_text(content)
        assert content["chosen"] == chosen and content["shown_depends_on_user"]["found"] == (share > 0.5)
        assert ("clicked" in decision_table(content).header) == (share == 0.5)
        assert ("than popularity, whose first ten" in text) == (chosen == "popularity")
        assert f"prefers to give each his own in {100 * share:.1f} [" in text
        assert ("No list of the user's past tells what is shown to whom" in text) == (share == 0.5)
        assert ("What is shown may depend on the user" in text) == (share > 0.5)


def test_no_list_is_left_out_for_one_that_takes_too_long(
    decided: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, before = decided
    names = [row["list"] for row in before["contenders"]]
    judge_by_shown_later(monkeypatch, {name: np.full(40, 0.7 if name == "popularity" else 0.6) for name in names})
    told = Independence(*independent({"item_knn": np.tile([0.49, 0.51], 500)}))
    monkeypatch.setattr("adagrpo.pipeline.decide.independence", lambda data, lists: told)
    monkeypatch.setattr("adagrpo.pipeline.decide.clicks_of_lists", lambda *_: dict.fromkeys(names, 0.2))
    times = {name: (9.0 if name == "popularity" else 1.0, 1.0) for name in names}
    monkeypatch.setattr("adagrpo.pipeline.decide._milliseconds", lambda *_: times)
    content = Run.open(first.directory).decide(5.0)
    assert content["chosen"] == before["chosen"] and "whose first ten" not in decision_text(content)


def test_what_each_user_is_shown_by_chance_or_by_his_taste(
    decided: tuple[Run, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance, no list tells who was shown what; the policy's own first ten are told by the policy."""
    monkeypatch.setattr("adagrpo.evaluation.exposure_dependence.MARGIN", 0.2)  # of 60 users and 30 items
    data, draw = RunData(decided[0]), np.random.default_rng(0)
    shutil.copytree(data.prepared, tmp_path / "prepare")
    ((_, policy),) = ListMaker(Models(data)).recommenders(["sft"])
    users, length = np.flatnonzero(data.training.lengths), 10
    lists = [
        policy.known(one.items[:length])[0]
        for one in policy.recommend([Query(data.training.row(u).tolist()) for u in users])
    ]
    data.__dict__["prepared"] = tmp_path / "prepare"
    for by_taste in (False, True):
        rows = []
        for time in range(2000):
            row = int(draw.integers(len(users)))
            shown = lists[row] if by_taste else draw.permutation(data.num_items)[:length]
            rows += [(users[row], item, time, bool(draw.random() < 0.3)) for item in shown]
        table = pl.DataFrame(rows, schema=["user", "item", "timestamp", "clicked"], orient="row")
        table = table.unique(["user", "item"], keep="first", maintain_order=True)
        table.cast({"user": pl.Int32, "item": pl.Int32}).write_parquet(tmp_path / "prepare" / SHOWN_LATER)
        told = independence(data, [("sft", policy)])
        assert told is not None and told.found == (not by_taste)
        assert (told.told["sft"].low > 0.6) == by_taste
        assert clicks_of_lists(data, [("sft", policy)], SHOWN_LATER)["sft"] == pytest.approx(0.3, abs=0.05)


def test_a_few_users_refuse_no_list() -> None:
    for users, refused in ((1, []), (19, []), (20, ["fuse"])):
        judged = RandomOrder({"sft": np.ones(users), "fuse": np.full(users, 0.5), "rerank": np.ones(users)})
        assert judged.worse(["fuse", "rerank"]) == refused


@pytest.mark.slow
def test_a_list_is_outdone_by_one_with_a_better_order_and_no_fewer_clicks() -> None:
    draw = np.random.default_rng(0)
    noise = draw.normal(0, 0.1, 400)
    auc = {"sft": 0.5 + noise, "ease": 0.55 + draw.normal(0, 0.1, 400), "fuse": 0.6 + draw.normal(0, 0.1, 400)}
    judged = RandomOrder(auc | {"rerank": 0.5 + noise})  # the order of sft
    clicks = {"sft": 0.2, "rerank": 0.2, "ease": 0.3, "fuse": 0.25}
    assert judged.outdone([*clicks], clicks) == {"sft": "fuse", "rerank": "fuse"}  # fuse has fewer clicks than ease
    assert judged.outdone(["ease", "fuse"], {"ease": 0.2, "fuse": 0.2}) == {"ease": "fuse"}
    assert RandomOrder({name: values[:19] for name, values in auc.items()}).outdone([*auc], clicks) == {}  # too few
    wrong = 0
    for seed in range(100):  # twelve equal lists: some is left out wrongly in at most 5 % of the draws for the best
        drawn = np.random.default_rng(seed).normal(0.5, 0.1, (12, 100))
        equal = RandomOrder({str(number): row for number, row in enumerate(drawn)})
        wrong += "0" in equal.outdone([*equal.auc], dict.fromkeys(equal.auc, 0.1))
    assert wrong <= 100 * 0.05 + 3 * (100 * 0.05 * 0.95) ** 0.5


def test_the_simpler_of_equals_is_not_taken_where_random_exposures_tell_them_apart() -> None:
    values = {"sft": np.array([0.4, 0.5] * 50), "fuse": np.array([0.4, 0.502] * 50)}
    pairs = all_pairs(values)
    judged = RandomOrder({"sft": np.full(40, 0.5), "fuse": np.full(40, 0.75)})
    times = {"sft": 4.0, "fuse": 9.0}
    assert [choose(values, pairs, times, None, one).chosen for one in (None, judged)] == ["sft", "fuse"]
    assert choose(values, pairs, times, 5.0, judged).chosen == "sft"  # fuse is too slow


def test_bad_rows_of_the_random_log_are_listed(world: Any, data: Path, tmp_path: Path) -> None:
    rows = [("u00", item, "maybe" if item == 13 else "1") for item in (3, 13, 23)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "clicked"], orient="row")
    table.write_csv(tmp_path / "random.csv")
    random = {"logs": [str(tmp_path / "random.csv")], "columns": {"clicked": "clicked"}}
    plain = world.run(tmp_path / "plain", data).prepare()
    run = world.run(tmp_path / "run", data, data={"random": random, "max_bad_rows": 1})
    summary = run.prepare()
    assert summary["rows_read"] == plain["rows_read"] + 3 and summary["rows_rejected"] == 1
    assert len(pl.read_parquet(run.path("prepare", "rejects.parquet"))) == 1


def test_a_random_log_that_judges_no_list_is_a_doubt(
    decided: tuple[Run, dict[str, Any]], world: Any, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(decided[0].directory, folder)
    prepared = RunData(decided[0]).prepared
    user, items = load_user_ids(prepared)[0], load_item_ids(prepared).to_list()
    unseen = next(item for row, item in enumerate(items) if row not in load_whole(prepared).row(0))
    table = pl.DataFrame({"user_id": [user], "item_id": [str(unseen)], "clicked": [True]})  # and left none
    table.write_parquet(tmp_path / "random.parquet")
    random = {"logs": [str(tmp_path / "random.parquet")], "columns": {"clicked": "clicked"}}
    run = world.run(folder, data, reward=REWARD, data={"random": random})
    run.prepare()
    content = run.decide()
    assert content["random_users"] == 0
    assert any(doubt.startswith("what was shown at random judged no list") for doubt in content["doubts"])


def test_random_exposures_without_clicks_are_refused(world: Any, data: Path, tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["u00"], "item_id": [3]}).write_csv(tmp_path / "random.csv")
    run = world.run(tmp_path / "run", data, data={"random": {"logs": [str(tmp_path / "random.csv")]}})
    with pytest.raises(UserError, match=r"data\.random: no column says what was clicked"):
        run.prepare()
