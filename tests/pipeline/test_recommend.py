"""`adagrpo recommend`: the lists of many users as Parquet, from files of every kind, in parts, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.config import resolve_config
from adagrpo.console import StderrConsole
from adagrpo.errors import UserError
from adagrpo.lists.query import Query, Recommendations
from adagrpo.pipeline import ListOptions, Run, recommend_users
from adagrpo.pipeline import recommend as recommending
from adagrpo.pipeline.directory import hash_of
from adagrpo.pipeline.files import RunData
from adagrpo.pipeline.list_parts import LoggedHistories, _are_integers

SUFFIXES = (".parquet", ".json")
HISTORIES = {"a": [3, 13, 23], "b": [293], "c": [3, 999, 13], "d": [999], "e": []}


def write(folder: Path, kind: str) -> Path:
    """The users and their histories in a file of some kind."""
    path = folder / f"users.{kind}"
    frame = pl.DataFrame({"user_id": list(HISTORIES), "history": list(HISTORIES.values())})
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"user_id": u, "history": h}) + "\n" for u, h in HISTORIES.items()))
    elif kind == "csv":
        path.write_text("user_id,history\n" + "".join(f"{u},{' '.join(map(str, h))}\n" for u, h in HISTORIES.items()))
    else:
        path = folder / "users.csv"
        rows = "".join(f'{u},"{json.dumps(h)}"\n' for u, h in HISTORIES.items())
        path.write_text("user_id,history\n" + rows)
    return path


def lists(out: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(out.glob("part-*.parquet"))])


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix in SUFFIXES}


@pytest.mark.parametrize("kind", ["csv", "csv of JSON", "jsonl", "parquet"])
def test_lists_are_those_of_the_server_whatever_the_file(finished: Path, tmp_path: Path, kind: str):
    run = Run.open(finished)
    summary = recommend_users(run, write(tmp_path, kind), tmp_path / "out", k=4)
    served, about = recommending.recommender(run, ListOptions())
    expected = []
    for user, history in HISTORIES.items():
        known = served.known(history)[0]
        found = served.recommend([Query(known)])[0] if known else Recommendations([], [], [])
        expected.append((user, found.items[:4]))
    table = lists(tmp_path / "out")
    assert table.select("user_id", "items").rows() == expected
    assert table["scores"].list.len().to_list() == table["items"].list.len().to_list()
    assert table.schema == {"user_id": pl.String, "items": pl.List(pl.Int64), "scores": pl.List(pl.Float32)}
    counts = {"users": 5, "users_without_a_list": 2, "unknown_users": 5, "unknown_item_ids": 2}
    assert {name: summary[name] for name in counts} == counts
    assert (summary["arm"], summary["precision"], summary["k"]) == (about["arm"], about["precision"], 4)
    assert summary == json.loads((tmp_path / "out/summary.json").read_text()) | {"folder": str(tmp_path / "out")}


def test_users_alone_have_their_whole_logged_history(world: Any, finished: Path, tmp_path: Path):
    users = ["u07", "u00", "nobody", "short-1"]
    (tmp_path / "users.csv").write_text("user_id\n" + "\n".join(users) + "\n")
    run = Run.open(finished)
    summary = recommend_users(run, tmp_path / "users.csv", tmp_path / "out")
    assert (summary["unknown_users"], summary["users_without_a_list"]) == (1, 1)
    given = {user: world.sequences[user] for user in users if user != "nobody"}
    rows = "".join(json.dumps({"user_id": user, "history": items}) + "\n" for user, items in given.items())
    (tmp_path / "users.jsonl").write_text(rows)
    recommend_users(run, tmp_path / "users.jsonl", tmp_path / "given")
    table = lists(tmp_path / "out")
    assert table["user_id"].to_list() == users and table["items"][2].to_list() == []
    assert table.filter(pl.col("user_id") != "nobody").equals(lists(tmp_path / "given"))


def test_a_killed_command_goes_on_behind_the_last_whole_part(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recommending, "PART_USERS", 2)
    run, users, out = Run.open(finished), write(tmp_path, "jsonl"), tmp_path / "out"
    whole = recommend_users(run, users, out)
    parts = {path.name: path.read_bytes() for path in out.glob("part-*.parquet")}
    assert sorted(parts) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    files = json.loads((out / "manifest.json").read_text())["files"]
    rows = {name: (entry["first_row"], entry["rows"]) for name, entry in files.items()}
    assert list(rows) == sorted(parts) and list(rows.values()) == [(0, 2), (2, 2), (4, 1)]
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert recommend_users(run, users, out) == whole  # unchanged, nothing written
    for name in ("summary.json", "part-00002.parquet"):
        (out / name).unlink()
    (out / "part-00000.parquet").write_bytes(parts["part-00000.parquet"][:-9])  # as after a loss of power
    assert recommend_users(run, users, out) == whole
    assert {path.name: path.read_bytes() for path in out.glob("part-*.parquet")} == parts
    assert (out / "part-00001.parquet").stat().st_mtime_ns == times[out / "part-00001.parquet"]
    (out / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"part-00001.parquet: missing"):
        recommend_users(run, users, out)  # it was whole once, and somebody took a part away
    with pytest.raises(UserError, match="holds lists of another checkpoint, catalogue, file, column, filter or length"):
        recommend_users(run, users, out, k=3)


def test_a_part_that_is_damaged_between_kill_and_resumption_is_made_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """One bit of the data: the footer, which says what the part answers, is whole."""
    monkeypatch.setattr(recommending, "PART_USERS", 2)
    run, users, out = Run.open(finished, console=StderrConsole()), write(tmp_path, "jsonl"), tmp_path / "out"
    whole = recommend_users(run, users, out)
    parts = {path.name: path.read_bytes() for path in out.glob("part-*.parquet")}
    for name in ("summary.json", "manifest.json", "part-00002.parquet"):  # as after a kill in the last part
        (out / name).unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    damaged = bytearray(parts["part-00000.parquet"])
    damaged[40] ^= 1
    (out / "part-00000.parquet").write_bytes(damaged)
    assert recommend_users(run, users, out) == whole
    assert {path.name: path.read_bytes() for path in out.glob("part-*.parquet")} == parts
    assert (out / "part-00001.parquet").stat().st_mtime_ns == times[out / "part-00001.parquet"]
    assert "part-00000.parquet: changed after it was finished; it is made again" in capsys.readouterr().err
    content = bytearray((out / "begun.json").read_bytes())
    content[-20] ^= 1
    (out / "begun.json").write_bytes(content)
    with pytest.raises(UserError, match=r"begun.json: is not as it was written; --out takes a new folder"):
        recommend_users(run, users, out)


def test_a_part_that_is_damaged_while_others_are_made_is_not_sealed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recommending, "PART_USERS", 2)
    run, users, out = Run.open(finished), write(tmp_path, "jsonl"), tmp_path / "out"
    read = recommending.read_parts

    def damaging(wanted: Any) -> Any:
        for task in read(wanted):
            if "parts" in task:
                path = out / "part-00001.parquet"
                path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR2", 1))
            yield task

    with monkeypatch.context() as patch:
        patch.setattr(recommending, "read_parts", damaging)
        with pytest.raises(UserError, match=r"part-00001.parquet: changed after it was finished"):
            recommend_users(run, users, out)
    assert not (out / "manifest.json").exists() and not (out / "summary.json").exists()
    assert recommend_users(run, users, out)["users"] == 5


def test_a_history_is_left_out_where_that_is_asked_for(finished: Path, tmp_path: Path):
    run, users = Run.open(finished), write(tmp_path, "parquet")
    recommend_users(run, users, tmp_path / "out", ListOptions(exclude_history=True))
    found = dict(lists(tmp_path / "out").select("user_id", "items").rows())
    assert {user: len(items) for user, items in found.items()} == {"a": 10, "b": 10, "c": 10, "d": 0, "e": 0}
    assert not any(set(items) & set(HISTORIES[user]) for user, items in found.items())


def test_user_ids_keep_the_type_of_the_logs(world: Any, tmp_path: Path):
    """Whole numbers in the logs and as text in a CSV file come out as whole numbers."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [(user, item, place) for user in range(30) for place, item in enumerate(range(user % 7, user % 7 + 5))]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    run = world.run(tmp_path / "run", folder)
    run.prepare()
    assert _are_integers(["7", "12"]) and not _are_integers(["7", "x"]) and not _are_integers(["07"])
    logged = LoggedHistories(RunData(run))
    names = pl.read_parquet(tmp_path / "run/prepare/items.parquet")["item_id"].to_list()
    for user in range(30):
        assert [names[item] for item in logged.of(str(user)) or ()] == list(range(user % 7, user % 7 + 5))
    assert logged.of("x") is None


def test_what_came_after_the_test_target_is_part_of_a_history(world: Any, tmp_path: Path):
    """A split in time leaves interactions that are neither trained on nor evaluated; a list must not repeat them."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [(f"u{user}", (user + place) % 9, place) for user in range(30) for place in range(user % 7 + 1)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    split = {"split": {"kind": "temporal", "validation_from": 2, "test_from": 3, "users": 8}}
    run = world.run(tmp_path / "run", folder, data=split)
    run.prepare()
    names = pl.read_parquet(tmp_path / "run/prepare/items.parquet")["item_id"].to_list()
    logged = LoggedHistories(RunData(run))
    for user in range(30):
        whole = [(user + place) % 9 for place in range(user % 7 + 1)]
        assert [names[item] for item in logged.of(f"u{user}") or ()] == whole
    later = len(pl.read_parquet(tmp_path / "run/prepare/later.parquet"))
    summary = json.loads((tmp_path / "run/prepare/summary.json").read_text())
    assert summary["later_interactions"] == later > 0
    tables = [pl.read_parquet(tmp_path / f"run/prepare/{name}.parquet") for name in ("train", "validation", "test")]
    assert sum(map(len, tables)) + later == summary["interactions"]


def test_a_test_target_that_came_since_is_part_of_a_history(world: Any, tmp_path: Path):
    """Under a split in time it moves no weights; the lists without it passed for those of now."""
    folder = tmp_path / "data"
    split = {"split": {"kind": "temporal", "validation_from": 1040, "test_from": 1050}}
    (tmp_path / "users.csv").write_text("user_id\nshort-1\n")

    def made() -> Run:
        run: Run = world.run(tmp_path / "run", folder, data=split)
        for verb in (Run.prepare, Run.tokenize, Run.sft):
            verb(run)
        return run

    log = world.write(folder)
    run = made()
    recommend_users(
        Run.open(run.directory), tmp_path / "users.csv", tmp_path / "out", ListOptions(exclude_history=True)
    )
    before = lists(tmp_path / "out")["items"][0].to_list()
    weights = hash_of(run, run.path("sft", "best", "model.safetensors"))
    log.write_text(f"{log.read_text()}short-1,{before[0]},1060\n")
    again = made()
    assert again.made == ["prepare"] and hash_of(again, again.path("sft", "best", "model.safetensors")) == weights
    with pytest.raises(UserError, match="holds lists of another checkpoint"):
        recommend_users(
            Run.open(run.directory), tmp_path / "users.csv", tmp_path / "out", ListOptions(exclude_history=True)
        )
    recommend_users(
        Run.open(run.directory), tmp_path / "users.csv", tmp_path / "now", ListOptions(exclude_history=True)
    )
    assert before[0] not in lists(tmp_path / "now")["items"][0].to_list()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("users.csv", "uid,history\na,3\n", "no column 'user_id'"),
        (
            "users.jsonl",
            '{"user_id": "a", "history": [3]}\n{"user_id": "b"}\n',
            "row 2: not a JSON object with",
        ),
        ("users.jsonl", '{"user_id": "a", "history": "3"}\n', "row 1: history is '3'; expected a list of item ids"),
        ("users.jsonl", '{"user_id": "a", "history": [[3]]}\n', r"row 1: history is \[\[3\]\]; expected a list"),
        ("users.jsonl", '{"user_id": null, "history": [3]}\n', "row 1: user_id is None; expected an id"),
        ("users.csv", 'user_id,history\na,"[3, "\n', r"row 1: history is '\[3, '; expected a list of item ids"),
        ("users.txt", "a", "not a file of a known kind"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(finished: Path, tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        recommend_users(Run.open(finished), tmp_path / name, tmp_path / "out")


def test_a_file_that_is_refused_takes_no_folder(finished: Path, tmp_path: Path):
    (tmp_path / "users.csv").write_text("user_id,history\n,3\n")
    with pytest.raises(UserError, match="row 1: user_id is None"):
        recommend_users(Run.open(finished), tmp_path / "users.csv", tmp_path / "out")
    assert recommend_users(Run.open(finished), write(tmp_path, "csv"), tmp_path / "out")["users"] == 5


def test_a_history_column_that_is_not_there_is_refused(finished: Path, tmp_path: Path):
    (tmp_path / "users.csv").write_text("user_id,past\na,3 13\n")
    message = r"users\.csv: no column 'pasts'; did you mean 'past'\? --history-column says which it is"
    with pytest.raises(UserError, match=message):
        recommend_users(Run.open(finished), tmp_path / "users.csv", tmp_path / "out", columns=(None, "pasts"))
    assert not (tmp_path / "out").exists()


def test_lists_of_another_column_are_others(finished: Path, tmp_path: Path):
    frame = pl.DataFrame({"user_id": ["a", "b"], "uid": ["x", "y"], "history": [[3], [13]], "recent": [[103], [113]]})
    frame.write_parquet(tmp_path / "users.parquet")
    run, out = Run.open(finished), tmp_path / "out"
    recommend_users(run, tmp_path / "users.parquet", out, k=3)
    for columns in (("uid", None), (None, "recent")):
        with pytest.raises(UserError, match="holds lists of another"):
            recommend_users(run, tmp_path / "users.parquet", out, k=3, columns=columns)
    recommend_users(run, tmp_path / "users.parquet", out, k=3, columns=("user_id", "history"))
    assert lists(out)["user_id"].to_list() == ["a", "b"]


def test_the_users_are_in_the_column_that_the_logs_call_so(world: Any, tmp_path: Path):
    config = resolve_config(deepcopy(world.recipe()), ["data.columns.user=customer_no"], "recipe")
    run, path = Run(tmp_path / "run", config, Path()), tmp_path / "users.csv"
    path.write_text("customer_no,user_id,history\nx,a,3\n")
    assert recommending._user_column(run, path) == "user_id"
    path.write_text("customer_no,history\nx,3\n")
    assert recommending._user_column(run, path) == "customer_no"
    path.write_text("uid,history\nx,3\n")
    with pytest.raises(UserError, match="no column 'customer_no'; --user-column says which it is; the columns are uid"):
        recommending._user_column(run, path)


def test_lists_by_another_reward_are_others(copied: Path, world: Any, data: Path, tmp_path: Path):
    """Its module is a file of the reward: what was ranked by an earlier one is not given for the present one's."""
    code, users = tmp_path / "code", write(tmp_path, "jsonl")
    for sign in ("", "-"):
        (code / "mine.py").parent.mkdir(exist_ok=True)
        scores = f"[[float({sign}item) for item in row] for row in candidates]"
        (code / "mine.py").write_text(f"def by_id(histories, candidates):\n    return {scores}\n")
        sys.modules.pop("mine", None)
        config = resolve_config(world.recipe(reward={"kind": "callable", "function": "mine:by_id"}), [], "recipe")
        run = Run(copied, config, data, code=code)
        run.stage("reranking") / "weight.json"
        asked = ListOptions("sft", reward_weight=1e3)
        if sign:
            with pytest.raises(UserError, match="holds lists of another"):
                recommend_users(run, users, tmp_path / "out", asked, k=3)
        recommend_users(run, users, tmp_path / f"out{sign}", asked, k=3)
    first, second = (lists(tmp_path / name)["items"].to_list()[0] for name in ("out", "out-"))
    assert max(first) > max(second)


def test_somebody_elses_folder_is_refused(finished: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    for out in (tmp_path / "out", finished):
        with pytest.raises(UserError, match=r"is not empty and no list|holds a run, not a list"):
            recommend_users(Run.open(finished), write(tmp_path, "csv"), out)


@pytest.mark.slow
def test_the_command(finished: Path, tmp_path: Path):
    command = [sys.executable, "-m", "adagrpo", "recommend", "--run", str(finished), "--out", str(tmp_path / "out")]
    command += ["--users", str(write(tmp_path, "csv")), "--k", "3", "--exclude-history", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["users"] == 5
    assert lists(tmp_path / "out")["items"].list.len().to_list() == [3, 3, 3, 0, 0]


def test_lists_hold_what_is_eligible_and_users_without_a_history_what_is_popular(finished: Path, tmp_path: Path):
    run, users = Run.open(finished), write(tmp_path, "csv")
    ids = [10 * item + 3 for item in range(0, 30, 2)]
    options: dict[str, Any] = {"include": {"item_id": ids}, "exclude": [ids[0], 999], "popular": True}
    summary = recommend_users(run, users, tmp_path / "out", k=4, **options)
    assert (summary["eligible_items"], summary["popular_lists"], summary["users_without_a_list"]) == (14, 2, 0)
    table = lists(tmp_path / "out")
    assert table["user_id"].to_list() == list(HISTORIES)
    assert {*table["items"].explode()} <= {*ids[1:]}
    served = recommending.recommender(run, ListOptions())[0]
    narrowing = served.narrow({"item_id": ids}, [ids[0]])
    for user, history in HISTORIES.items():
        found = served.recommend([Query(served.known(history)[0], None, *narrowing[:2])])[0]
        (row,) = table.filter(pl.col("user_id") == user).rows(named=True)
        assert row["items"] == found.items[:4] and row["source"] == found.source
    with pytest.raises(UserError, match=r"holds lists of another"):
        recommend_users(run, users, tmp_path / "out", k=4, include={"item_id": ids}, popular=True)
    with pytest.raises(UserError, match=r"no item is eligible"):
        recommend_users(run, users, tmp_path / "none", k=4, include=[999])
    with pytest.raises(UserError, match=r"^include.market: the items have no group 'market'"):
        recommend_users(run, users, tmp_path / "none", k=4, include={"market": "de"})


def test_a_user_whose_history_holds_all_that_is_eligible_is_one_without_a_list(finished: Path, tmp_path: Path):
    known = next(history for history in HISTORIES.values() if history)
    asked = ListOptions(exclude_history=True)
    for popular, popular_lists in ((False, None), (True, 2)):
        out = tmp_path / f"out-{popular}"
        users = write(tmp_path, "csv")
        summary = recommend_users(Run.open(finished), users, out, asked, k=4, popular=popular, include=[known[-1]])
        empty = lists(out)["items"].list.len().to_list().count(0)
        assert empty and summary["users_without_a_list"] == empty == (1 if popular else 3)
        assert summary.get("popular_lists") == popular_lists


def whole_file(folder: Path, rows: int) -> Path:
    path = folder / "many.parquet"
    histories = [[10 * ((row * 7 + place) % 30) + 3 for place in range(row % 5)] for row in range(rows)]
    pl.DataFrame({"user_id": [f"u{row}" for row in range(rows)], "history": histories}).write_parquet(path)
    return path


@pytest.mark.slow
def test_a_killed_command_loses_and_repeats_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command leaves what one that was never killed does."""
    users, out = whole_file(tmp_path, 400), tmp_path / "out"
    command = [sys.executable, "-c", COMMAND, str(finished), str(users), str(out)]
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(list(out.glob("part-*.parquet"))) >= 2)
    begun.kill()
    begun.wait()
    assert len(list(out.glob("part-*.parquet"))) < 80 and not (out / "summary.json").exists()
    monkeypatch.setattr(recommending, "PART_USERS", 5)
    for place in (out, tmp_path / "alone"):
        recommend_users(Run.open(finished), users, place)
    assert lists(out)["user_id"].to_list() == [f"u{row}" for row in range(400)]
    assert not list(out.glob(".*.tmp"))
    assert contents(out) == contents(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_ray_writes_what_one_process_does(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommending, "PART_USERS", 7)
    users = whole_file(tmp_path, 40)
    recommend_users(Run.open(finished), users, tmp_path / "alone")
    recommend_users(Run.open(finished), users, tmp_path / "ray", ray_actors=2)
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")


COMMAND = """
import sys, time
from pathlib import Path
from adagrpo.pipeline import Run, recommend_users
from adagrpo.pipeline import recommend

if __name__ == "__main__":
    recommend.PART_USERS = 5
    run, users, out = map(Path, sys.argv[1:])
    recommend_users(Run.open(run), users, out)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
