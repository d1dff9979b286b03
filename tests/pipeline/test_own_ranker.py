"""A shop's own ranker: refused before anything is fitted, and served as it was measured, user by user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.errors import UserError
from adagrpo.pipeline import ListOptions, Run
from adagrpo.pipeline.factories import Models
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_makers import ListMaker, lists_of
from adagrpo.pipeline.serve import Operation, _Wanted
from adagrpo.serving.options import Limits, Options
from adagrpo.types import Cases

from ..command_line import command
from ..consoles import Heard

# what each user likes is a third of the ring, and who asks decides all
TASTE = """
def taste(histories, candidates, users, times):
    assert all(time is None or time > 0 for time in times)
    thirds = [None if user is None else int(user[1:]) % 3 for user in users]
    return [[float(item) / 1000 + (item // 10 % 3 == third) for item in row] for third, row in zip(thirds, candidates)]
"""
SEEN = """
ASKED = []


def seen(histories, candidates, *, shown):
    ASKED.extend(shown)
    return [[-[one for one, clicked in own if not clicked].count(item) + item / 1e4 for item in row]
            for own, row in zip(shown, candidates)]
"""


def trees(path: Path, names: list[str]) -> Path:
    """A model in which the second feature decides whether much or little of the first is good."""
    lightgbm = pytest.importorskip("lightgbm")
    draw = np.random.default_rng(0)
    table = np.column_stack([draw.normal(size=300) * 10 + 10 for _ in names])
    options = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}
    labels = table[:, 0] * np.sign(table[:, min(1, len(names) - 1)] - 10)
    lightgbm.train(options, lightgbm.Dataset(table, labels, feature_name=names), 20).save_model(path)
    return path


@pytest.fixture
def shop(world: Any, tmp_path: Path) -> Path:
    """The tiny world with an item table and a table of users, as CSV files."""
    world.write(tmp_path)
    items = sorted({item for sequence in world.sequences.values() for item in sequence})
    pl.DataFrame(
        {
            "item_id": items[1:],
            "title": [f"thing {item} of kind {item % 7}" for item in items[1:]],
            "price": [None if item % 4 == 1 else item / 10 for item in items[1:]],
            "available_from": ["2026-01-31"] * len(items[1:]),
        }
    ).write_csv(tmp_path / "items.csv")
    names = [name for name in world.sequences if name.startswith("u")]
    pl.DataFrame({"user_id": names, "budget": [float(name[1:]) for name in names]}).write_csv(tmp_path / "people.csv")
    (tmp_path / "recipe.yaml").write_text(json.dumps(world.recipe()))
    return tmp_path


TABLE = {"path": "items.csv", "id_column": "item_id", "text": ["title"]}


def reward_list(run: Run) -> tuple[list[list[Any]], list[list[Any]], list[str]]:
    """The measured lists of the reward alone for test cases, the histories, and the users."""
    data = RunData(run)
    cases = data.cases("test")
    served = dict(ListMaker(Models(data)).recommenders(["reward"]))["reward"]
    found = lists_of(served, data, cases).items
    ids = data.item_ids.to_list()
    histories = [[ids[item] for item in cases.histories.row(row)] for row in range(len(cases))]
    users = [str(data.user_ids[user]) for user in cases.users]
    return [[ids[item] for item in row if item >= 0] for row in found], histories, users


def served_over_http(run: Run, histories: list[list[Any]], users: list[str]) -> list[list[Any]]:
    """The lists that a service gives for the same histories and users."""
    from fastapi.testclient import TestClient

    from adagrpo.serving.app import Application
    from adagrpo.serving.model_manager import ModelManager

    serving = _Wanted(run, ListOptions("reward")).load(Operation(rerank_seconds=30.0))
    with TestClient(Application(ModelManager(serving), Options(Limits(deadline_seconds=60.0)))) as client:
        bodies = [{"history": one, "user_id": user, "k": 10} for one, user in zip(histories, users, strict=True)]
        reply = client.post("/v1/recommend", json={"requests": bodies[:30]})
        assert reply.status_code == 200, reply.text
        return [one["items"] for one in reply.json()["responses"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "function"])
def test_lists_for_users_are_served_as_they_were_measured(world: Any, shop: Path, tmp_path: Path, kind: str) -> None:
    if kind == "model":
        reward: dict[str, Any] = {"kind": "lightgbm", "model": "m.txt", "users": "people.csv"}
        trees(shop / "m.txt", ["price", "budget", "popularity"])
    else:
        reward = {"kind": "callable", "function": "own_taste:taste"}
        (shop / "own_taste.py").write_text(TASTE)
    run = world.run(tmp_path / "run", shop, data={"items": TABLE}, reward=reward)
    run.code = shop
    for stage in ("prepare", "tokenize", "sft", "ranker"):
        getattr(run, stage)()
    run._look_at_reward()
    opened = Run.open(tmp_path / "run")
    measured, histories, users = reward_list(opened)
    # the user decides: of two users with one history the lists differ
    twice = opened.recommend([histories[0]] * 3, arm="reward", users=[users[0], users[-1], None]).items
    assert twice[0] != twice[1] and twice[0] == measured[0][:10]
    found = opened.recommend(histories, arm="reward", users=users).items
    assert found == [row[:10] for row in measured]
    wanted = tmp_path / "users.jsonl"
    rows = [{"user_id": user, "history": one} for user, one in zip(users, histories, strict=True)]
    wanted.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    reply = command(
        "recommend", "--run", tmp_path / "run", "--arm", "reward", "--users", wanted, "--out", tmp_path / "lists"
    )
    assert reply.status == 0, reply.err
    assert pl.read_parquet(tmp_path / "lists" / "*.parquet")["items"].to_list() == found
    pytest.importorskip("fastapi")
    assert served_over_http(opened, histories, users) == found[:30]


def test_a_changed_table_of_users_makes_what_reads_it_stale(world: Any, shop: Path, tmp_path: Path) -> None:
    trees(shop / "m.txt", ["price", "budget"])
    reward = {"kind": "lightgbm", "model": "m.txt", "users": "people.csv"}
    run = world.run(tmp_path / "run", shop, data={"items": TABLE}, reward=reward)
    for stage in ("prepare", "tokenize", "sft", "ranker"):
        getattr(run, stage)()
    run._look_at_reward()
    before = run.content("reward", "reward.json")["probe"]["scores"]
    table = pl.read_csv(shop / "people.csv").with_columns(pl.col("budget") * -1)
    table.write_csv(shop / "people.csv")
    again = Run.open(tmp_path / "run")
    with pytest.raises(UserError, match=r"reward is stale: .*people\.csv"):
        again.recommend([[13]], arm="reward", users=["u01"])
    again._look_at_reward()
    assert again.made == ["reward"] and again.content("reward", "reward.json")["probe"]["scores"] != before
    # prices are no part of what policies learn from
    items = pl.read_csv(shop / "items.csv").with_columns(pl.col("price") * 2)
    items.write_csv(shop / "items.csv")
    third = Run.open(tmp_path / "run")
    for stage in ("prepare", "tokenize", "sft"):
        getattr(third, stage)()
    assert third.made == ["prepare"]


def test_columns_of_the_item_table_are_kept_as_they_are(world: Any, shop: Path, tmp_path: Path) -> None:
    heard = Heard()
    run = world.run(tmp_path / "run", shop, heard, data={"items": TABLE})
    run.prepare()
    data = RunData(run)
    kept = dict(zip(data.item_ids.to_list(), data.version.item_columns.rows(), strict=True))
    assert data.version.item_columns.columns == ["title", "price", "available_from"] and len(kept) == 30
    assert kept[23] == ("thing 23 of kind 2", "2.3", "2026-01-31")  # of a CSV file
    assert kept[13][1] is None and kept[3] == (None, None, None)
    assert "note: items.csv describes 29 of the 30 items of the logs; " in "".join(heard.notes)


def test_an_update_of_the_catalogue_keeps_the_columns_of_new_items(world: Any, shop: Path, tmp_path: Path) -> None:
    run = world.run(tmp_path / "run", shop, data={"items": TABLE})
    run.prepare()
    run.tokenize()
    new = pl.DataFrame({"item_id": [7], "title": ["thing 13 of kind 6"], "price": [4.5]})
    new.write_parquet(tmp_path / "new.parquet")
    run.update_catalog(items=tmp_path / "new.parquet")
    from adagrpo.pipeline.versions import open_version

    found = open_version(run, "latest").item_columns
    assert len(found) == 31 and found.row(30) == ("thing 13 of kind 6", "4.5", None)
    assert found.head(30).equals(RunData(run).version.item_columns)


def test_a_function_gets_what_it_names_and_times_of_the_targets(world: Any, shop: Path, tmp_path: Path) -> None:
    rows = [
        (user, item, 1_700_000_000 + 86_400 * place)
        for user, sequence in world.sequences.items()
        for place, item in enumerate(sequence)
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(shop / "log.csv")
    shown = [(user, item + 10 * (item < 293), time - 5, 0) for user, item, time in rows]
    shown += [(user, item, time - 5, 1) for user, item, time in rows]
    table = pl.DataFrame(shown, schema=["user_id", "item_id", "timestamp", "clicked"], orient="row")
    table.sort("timestamp", "clicked").write_csv(shop / "shown.csv")
    columns = {"timestamp": "timestamp", "clicked": "clicked"}
    log = {"columns": {"timestamp": "timestamp"}, "impressions": {"logs": ["shown.csv"], "columns": columns}}
    (shop / "own_seen.py").write_text(SEEN)
    run = world.run(tmp_path / "run", shop, data=log, reward={"kind": "callable", "function": "own_seen:seen"})
    run.code = shop
    run.prepare()
    data = RunData(run)
    cases: Cases = data.cases("validation")
    sequences = [world.sequences[str(data.user_ids[user])] for user in cases.users]
    seconds = [1_700_000_000 + 86_400 * (len(sequence) - 2) for sequence in sequences]
    assert list(cases.asking(np.arange(len(cases))).times) == pytest.approx(seconds)
    test_seconds = [1_700_000_000 + 86_400 * (len(sequence) - 1) for sequence in sequences]
    assert list(data.cases("test").asking(np.arange(len(cases))).times) == pytest.approx(test_seconds)
    scores = Models(data).score_lists(Models(data).reward(), cases, np.tile(np.arange(30), (len(cases), 1)))
    import own_seen

    assert len(own_seen.ASKED) == len(cases) and np.isfinite(scores).all()
    by_user = {len(one): one for one in own_seen.ASKED}
    assert all(item in range(3, 303) and isinstance(clicked, bool) for one in by_user.values() for item, clicked in one)
    first = own_seen.ASKED[0]
    # up to the last training interaction, oldest first: two rows for each but the two that are held out
    assert [clicked for _, clicked in first] == [False, True] * (len(first) // 2) and len(first) >= 2


def decide(shop: Path, out: str, *more: object) -> Any:
    return command("decide", shop / "log.csv", "--items", shop / "items.csv", "--out", shop / out, *more)


def test_a_reward_that_does_not_fit_is_refused_before_anything_is_fitted(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    trees(shop / "m.txt", ["price", "catshare"])
    reply = decide(shop, "run", "--reward", "m.txt", "--users", "people.csv", "--quiet")
    assert reply.status == 2 and reply.err == (
        f"adagrpo: {shop / 'm.txt'}: the feature 'catshare' is nowhere: looked for in the item table items.csv, the"
        " table of users people.csv and our own features; the nearest name is 'repeats'\n"
    )
    assert not (shop / "run" / "tokenize").exists() and (shop / "run" / "prepare").is_dir()
    (shop / "own_late.py").write_text("def fails(histories, candidates):\n    raise KeyError('no price')\n")
    reply = decide(shop, "run", "--reward", "own_late:fails", "--quiet")
    assert reply.status == 2 and reply.err == "adagrpo: reward own_late:fails: raised KeyError: 'no price'\n"
    assert not (shop / "run" / "tokenize").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--reward", "m.pkl"], "--reward m.pkl: no model file by its name; those that are read are LightGBM's .txt"),
        (["--reward", "none.cbm"], "--reward none.cbm: no such file"),
        (["--reward", "lambdarnk"], "--reward lambdarnk: no kind of reward; give sequential, lambdarank, noise, "),
        (["--reward", "noise", "--users", "people.csv"], "--users: is for a model file; give one by --reward"),
        (["--users", "nobody.csv"], "--users nobody.csv: no such file"),
        (["--reward", "m.txt", "--users", "log.csv"], "log.csv, rows "),
        (["--reward", "m.txt", "--users", "items.csv"], "items.csv: no column 'user_id'"),
    ],
)
def test_a_reward_that_is_none_is_one_line(
    shop: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], said: str
) -> None:
    monkeypatch.chdir(shop)
    (shop / "m.pkl").write_bytes(b"\x80\x04")
    trees(shop / "m.txt", ["price"])
    reply = decide(shop, "run", *given, "--quiet")
    assert reply.status == 2 and said in reply.err and len(reply.err.splitlines()) == 1
    assert not (shop / "run" / "tokenize").exists()


def test_what_the_table_lacks_is_said_again_where_the_log_is_prepared_already(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    trees(shop / "m.txt", ["price", "nowhere"])
    for _ in range(2):
        reply = decide(shop, "run", "--reward", "m.txt")
        assert "note: items.csv describes 29 of the 30 items of the logs" in reply.err
        assert "note: neither texts nor attributes of items.csv: available_from; they are kept" in reply.err


def test_an_address_is_an_endpoint(shop: Path, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    service.behaviour = lambda service, handler, body: service.reply(handler, b"no", 404)
    reply = decide(shop, "run", "--reward", service.url, "--quiet")
    assert reply.status == 1 and reply.err.startswith(f"adagrpo: reward {service.url}: answered status 404; fix it")
    assert not (shop / "run" / "tokenize").exists()


def test_a_run_of_an_earlier_version_says_that_it_has_no_columns(world: Any, shop: Path, tmp_path: Path) -> None:
    trees(shop / "m.txt", ["price"])
    reward = {"kind": "lightgbm", "model": "m.txt"}
    run = world.run(tmp_path / "run", shop, data={"items": TABLE}, reward=reward)
    run.prepare()
    data = RunData(run)
    data.version.__dict__["item_columns"] = pl.DataFrame()
    with pytest.raises(UserError, match=r"items\.csv, whose columns this run has not kept: take a new one"):
        Models(data).reward()
