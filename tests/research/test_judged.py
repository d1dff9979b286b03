"""What a judge keeps of a table of exposures."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from adagrpo.data.dataset import build_dataset
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.prepared import load_item_ids, load_user_ids, load_whole, write_prepared
from adagrpo.data.splits import leave_one_out
from adagrpo.errors import UserError
from research.exposed_feed.judged import as_judged, read_judged

# user, item, place, whether it was watched: user 7 has 10, 11, 12 and left 13, user 8 has 12 and 13
LOG = [(7, 10, 0, 1), (7, 13, 1, 0), (7, 11, 2, 1), (7, 12, 3, 1), (8, 12, 0, 1), (8, 13, 1, 1)]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    path = tmp_path / "log.parquet"
    pl.DataFrame(LOG, schema=["user_id", "item_id", "place", "watched"], orient="row").write_parquet(path)
    dataset = build_dataset(read_logs([path], Columns(order="place", clicked="watched")))
    lengths = dataset.interactions.group_by("user").len().sort("user")["len"].to_numpy().astype("int64")
    write_prepared(dataset, leave_one_out(lengths), tmp_path / "prepare")
    return tmp_path / "prepare"


def judge(prepared: Path, rows: list[tuple[object, ...]], **options: int) -> tuple[pl.DataFrame, dict[str, int]]:
    path = prepared.parent / "shown.parquet"
    pl.DataFrame(rows, schema=["who", "what", "click", "like"], orient="row").write_parquet(path)
    return read_judged(path, prepared, user="who", item="what", labels=["click", "like"], **options)


def test_histories_are_all_that_the_logs_hold(prepared: Path) -> None:
    ids, whole = load_item_ids(prepared), load_whole(prepared)
    by_user = {user: ids.gather(whole.row(row)).to_list() for row, user in enumerate(load_user_ids(prepared))}
    assert by_user == {7: [10, 11, 12], 8: [12, 13]}


def test_ids_of_a_judge_are_those_of_the_logs(prepared: Path) -> None:
    rows = [(8.0, 11.0, True, False), (8.0, 10.5, True, False), (None, 10.0, True, True)]
    assert judge(prepared, rows)[1]["kept"] == 1 and judge(prepared, rows)[1]["unknown"] == 2


def test_what_is_left_out_and_why(prepared: Path) -> None:
    rows = [
        (8, 11, True, False),
        (8, 11, False, True),  # a repeat: the pair was clicked once, and liked once
        (8, 10, False, False),
        (8, 13, True, True),  # of the logs
        (9, 10, True, True),  # nobody that the logs know
        (8, 99, True, True),  # no item of the catalogue
        (8, 12, None, True),  # without a label
        (7, 13, False, False),  # shown after the last interaction of training: nothing remembers it
    ]
    table, counts = judge(prepared, rows)
    ids, users = load_item_ids(prepared), load_user_ids(prepared)
    found = {(users[user], ids[item], *labels) for user, item, *labels in table.rows()}
    assert found == {(7, 13, False, False), (8, 10, False, False), (8, 11, True, True)}
    assert table["user"].to_list() == [0, 1, 1]
    expected = {"rows": 8, "without_label": 1, "unknown": 2, "repeats": 1, "of_the_logs": 1}
    assert counts == expected | {"kept": 3, "users": 2, "items": 3}
    judged = as_judged(table, ["click"])
    assert list(judged.labels) == ["click"] and judged.labels["click"].tolist() == table["click"].to_list()


def test_some_users_are_a_function_of_the_seed(prepared: Path) -> None:
    rows = [(8, 11, True, False), (7, 13, True, False)]
    drawn = [judge(prepared, rows, some_users=1, seed=seed)[0]["user"].to_list() for seed in range(12)]
    assert all(len(users) == 1 for users in drawn) and {users[0] for users in drawn} == {0, 1}


def test_nothing_left_is_said_in_one_line(prepared: Path) -> None:
    with pytest.raises(UserError, match="none of 1 rows is of a user with a history"):
        judge(prepared, [(9, 10, True, True)])


@pytest.mark.parametrize(("label", "holds"), [([1, 2], "List"), (0.5, "Float64, such as '0.5'"), ("yes", "String")])
def test_a_column_that_is_no_label_is_refused_by_name(prepared: Path, label: object, holds: str) -> None:
    with pytest.raises(UserError, match=rf"column 'click' holds {holds}.* and no label; one is 1, 0, true or false"):
        judge(prepared, [(8, 11, label, False)])
