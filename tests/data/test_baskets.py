"""Baskets: what is one event, what a case is, and what a log is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.dataset import Dataset, build_dataset
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.logs.question import future_note, question_lines, question_of
from adagrpo.data.pairs import successions
from adagrpo.data.prepared import load_cases, load_training, load_until_test, write_prepared
from adagrpo.data.splits import last_baskets, temporal, with_baskets
from adagrpo.errors import UserError
from adagrpo.types import Ragged

DAY = 86_400
START = 1_600_000_000 // DAY * DAY  # midnight
ORDERS = """user,item,time,order
u1,a,0,o1
u1,b,0,o1
u1,c,1,o2
u2,b,0,o3
u1,a,1,o2
u1,a,2,o4
u1,d,2,o4
u1,d,2,o4
u2,c,3,o5
"""
COLUMNS = Columns(user="user", item="item", timestamp="time")


def dataset(folder: Path, text: str = ORDERS, columns: Columns = COLUMNS) -> Dataset:
    path = folder / "orders.csv"
    header, *rows = text.splitlines()
    place = header.split(",").index("time")
    dated = [
        ",".join([*(cells := row.split(","))[:place], str(START + int(cells[place]) * DAY), *cells[place + 1 :]])
        for row in rows
    ]
    path.write_text("\n".join([header, *dated]) + "\n", encoding="utf-8")
    return build_dataset(read_logs([path], columns), baskets=True)


def spelled(data: Dataset) -> list[tuple[str, str, int]]:
    """(user, item, basket) of each interaction, in order."""
    rows = data.interactions.join(data.users, on="user", maintain_order="left").join(
        data.items, on="item", maintain_order="left"
    )
    return list(rows.select("user_id", "item_id", "basket").iter_rows())


def test_lines_of_one_time_are_one_basket_in_which_an_item_stands_once(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    first = [("u1", "a", 0), ("u1", "b", 0), ("u1", "c", 1), ("u1", "a", 1), ("u1", "a", 2), ("u1", "d", 2)]
    assert spelled(data) == [*first, ("u2", "b", 0), ("u2", "c", 1)]
    assert data.summary["repeats_within_baskets_dropped"] == 1
    assert data.summary["baskets"] == 5
    assert data.interactions["days"][3] * DAY == START + DAY


def test_an_order_id_holds_lines_of_several_times_together(tmp_path: Path) -> None:
    text = "user,item,time,order\nu1,a,0,o1\nu1,b,1,o2\nu1,c,2,o1\nu1,d,1,o3\nu2,a,5,o4\n"
    found = spelled(dataset(tmp_path, text, COLUMNS.model_copy(update={"basket": "order"})))
    assert found[:4] == [("u1", "a", 0), ("u1", "c", 0), ("u1", "b", 1), ("u1", "d", 2)]


def test_an_order_id_of_two_users_is_refused(tmp_path: Path) -> None:
    text = "user,item,time,order\nu1,a,0,o1\nu2,b,1,o1\nu1,c,2,o2\n"
    with pytest.raises(UserError, match=r"data.columns.basket: 1 order ids belong to several users, the first is 'o1'"):
        dataset(tmp_path, text, COLUMNS.model_copy(update={"basket": "order"}))


def test_the_last_basket_is_the_test_case_and_nothing_of_it_is_in_its_history(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    baskets, offsets = data.interactions["basket"].to_numpy(), np.array([0, 6, 8])
    write_prepared(data, last_baskets(baskets, offsets), tmp_path / "made")
    names = data.items["item_id"].to_list()
    for split, history, wanted in (("validation", "ab", "ca"), ("test", "abca", "ad")):
        cases = load_cases(tmp_path / "made", split)
        assert cases.users.tolist() == [0]  # u2 has two baskets, and is trained on whole
        assert "".join(names[item] for item in cases.histories.row(0)) == history
        assert cases.relevant is not None and "".join(names[item] for item in cases.relevant.row(0)) == wanted
        assert cases.targets[0] in cases.relevant.row(0)
        assert cases.sizes is not None and cases.sizes.tolist() == [2]
        assert cases.histories.baskets is not None and cases.histories.baskets.tolist() == [0, 0, 1, 1][: len(history)]
        assert (
            cases.days is not None and (cases.days * DAY - START == [DAY if split == "validation" else 2 * DAY]).all()
        )
    training = load_training(tmp_path / "made")
    assert training.lengths.tolist() == [2, 2] and training.baskets is not None
    assert load_until_test(tmp_path / "made").baskets.tolist() == [0, 0, 1, 1, 2, 2, 0, 1]  # type: ignore[union-attr]


def test_by_time_each_user_has_one_case_the_first_basket_of_the_part(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    offsets = np.array([0, 6, 8])
    times = data.interactions["timestamp"].to_numpy()
    split = temporal(times, offsets, validation_from=START + DAY, test_from=START + 2 * DAY)
    split = with_baskets(split, data.interactions["basket"].to_numpy(), offsets)
    assert split.target_ends[0].tolist() == [4, 0]
    assert split.test_positions.tolist() == [4, 1]
    assert split.target_ends[1].tolist() == [6, 2]


def test_transitions_go_from_basket_to_basket() -> None:
    training = Ragged(np.array([0, 1, 2, 3, 0, 2], np.int32), np.array([0, 4, 6]), baskets=np.array([0, 0, 1, 1, 0, 1]))
    assert successions(training, 4, 3).toarray().tolist() == [
        [0, 0, 1.5, 0.5],
        [0, 0, 0.5, 0.5],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def log_of(users: int, *, together: int = 1, days: int = 100, again: bool = False) -> pl.DataFrame:
    """Each user buys `together` items every tenth day."""
    rows = [
        (f"u{user}", f"i{(0 if again else 7 * day) + n}", START + (day * 10 + user % 10) * DAY)
        for user in range(users)
        for day in range(days // 10)
        for n in range(together)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def read(table: pl.DataFrame, folder: Path, columns: Columns | None = None):
    table.write_parquet(folder / "log.parquet")
    return read_logs([folder / "log.parquet"], columns or Columns(timestamp="timestamp"))


def test_a_log_with_times_is_asked_by_time_and_a_small_one_is_not(tmp_path: Path) -> None:
    asked = question_of(read(log_of(200), tmp_path))
    assert not asked.baskets and asked.repeats == 0 and asked.by_time is not None
    # a hundred days: at most two whole weeks in each part, in which every user buys
    assert (asked.by_time.days, asked.by_time.test_cases, asked.by_time.validation_cases) == (14, 200, 200)
    assert "the last 14 days hold 200 cases, which are few" in question_lines(asked)[1]
    few = question_of(read(log_of(50), tmp_path))
    assert few.by_time is None and few.why_not == "the last 14 days hold 50 users with an earlier history, too few"


def test_orders_are_told_by_time_or_id_and_repeats_are_counted_between_them(tmp_path: Path) -> None:
    asked = question_of(read(log_of(20, together=2, again=True), tmp_path))
    assert asked.baskets and asked.lines_in_several == 1 and asked.repeats == pytest.approx(0.9)
    table = log_of(20).with_columns(order=pl.col("user_id") + pl.col("timestamp").cast(pl.String))
    single = question_of(read(table, tmp_path, Columns(timestamp="timestamp", basket="order")))
    assert not single.baskets


def test_guests_returns_and_postage_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("u,i,t,o,q\nu1,a,1,o1,2\n,a,2,o2,1\nu1,b,3,o3,-1\nu1,POST,4,o4,1\nu2,c,5,o5,1\n", encoding="utf-8")
    columns = Columns(user="u", item="i", timestamp="t", basket="o", quantity="q")
    logs = read_logs([path], columns, drop_items=["POST"])
    assert logs.left_out == {"rows_of_guests": 1, "rows_returned": 1, "rows_of_no_item": 1}
    assert len(logs.interactions) == 2 and logs.rows_read == 5 and logs.rows_filtered == 3 and len(logs.rejects) == 0
    with pytest.raises(UserError, match="row 2: u is empty"):  # without orders it is a bad row
        read_logs([path], columns.model_copy(update={"basket": None}))


def test_a_log_of_one_basket_a_user_is_asked_for_the_next_item(tmp_path: Path) -> None:
    table = log_of(5, together=3).filter(pl.col("timestamp") < START + 10 * DAY)
    asked = question_of(read(table, tmp_path))
    assert not asked.baskets and asked.lines_in_several == 1 and asked.users_with_one == 0
    some = pl.concat([table, log_of(1, together=3)])
    assert question_lines(question_of(read(some, tmp_path)))[-1] == (
        "note: 80 % of the users have one basket: nothing is asked of them"
    )


def test_rows_of_the_future_are_said_with_the_option_that_leaves_them_out(tmp_path: Path) -> None:
    logs = read(log_of(3), tmp_path)  # the last row is of day 92
    assert future_note(logs, START + 92 * DAY) is None
    assert future_note(logs, START + 90 * DAY) == (
        "note: 1 rows lie in the future, the last at 2020-12-14T00:00:00Z; to leave them out, --set"
        f" data.refuse.after={START + 91 * DAY} --max-bad-rows 1"
    )
