"""Shuffled ties: what moves, what does not, and the real effect on a file sorted within days."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.dataset import Dataset, ascending_runs, build_dataset, shuffle_ties
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.errors import UserError


def dataset(folder: Path, rows: list[tuple[str, str, int]], **columns: str) -> Dataset:
    path = folder / "log.csv"
    pl.DataFrame(rows, schema=["user_id", "item_id", "day"], orient="row").write_csv(path)
    return build_dataset(read_logs([path], Columns(**columns)))


def sequences(data: Dataset) -> dict[int, list[str]]:
    named = data.interactions.join(data.items.select("item", "item_id"), on="item", maintain_order="left")
    assert named["position"].to_list() == data.interactions["position"].to_list()
    return {user[0]: part["item_id"].to_list() for user, part in named.group_by("user", maintain_order=True)}


DAYS = [("a", f"i{k}", k // 4) for k in range(40)] + [("b", f"i{k}", 0) for k in range(30)]


def test_equal_timestamps_are_shuffled_and_days_stay_in_order(tmp_path: Path) -> None:
    before = dataset(tmp_path, DAYS, timestamp="day")
    after = shuffle_ties(before, seed=0)
    old, new = sequences(before), sequences(after)
    assert [row[0] for row in after.interactions.select("user", "position").rows()] == [0] * 40 + [1] * 30
    moved = 0
    for day in range(10):
        assert sorted(old[0][4 * day : 4 * day + 4]) == sorted(new[0][4 * day : 4 * day + 4])
        moved += old[0][4 * day : 4 * day + 4] != new[0][4 * day : 4 * day + 4]
    assert moved >= 7 and sorted(new[1]) == sorted(old[1]) and new[1] != old[1]
    assert after.interactions["timestamp"].to_list() == before.interactions["timestamp"].to_list()


def test_equal_seeds_give_equal_orders(tmp_path: Path) -> None:
    before = dataset(tmp_path, DAYS, timestamp="day")
    orders = [sequences(shuffle_ties(before, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_every_order_of_a_tie_is_as_likely(tmp_path: Path) -> None:
    rows = [(f"u{user:04d}", item, 0) for user in range(3000) for item in ("x", "y", "z")]
    orders = sequences(shuffle_ties(dataset(tmp_path, rows, timestamp="day"), seed=0)).values()
    counts = np.unique(["".join(order) for order in orders], return_counts=True)[1]
    # 3,000 draws of 6 orders: four standard errors of a count of 500 are 82
    assert len(counts) == 6 and np.abs(counts - 500).max() < 82


def test_ascending_runs_by_hand() -> None:
    assert ascending_runs(np.array([0, 0, 0, 1, 1, 1]), np.array([1, 2, 2, 3, 9, 4])).tolist() == [0, 0, 1, 2, 2, 3]
    assert ascending_runs(np.array([0]), np.array([7])).tolist() == [0]
    assert ascending_runs(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_runs_of_an_item_column_are_the_ties_without_timestamps(tmp_path: Path) -> None:
    items = tmp_path / "items.csv"
    pl.DataFrame({"item_id": [f"i{k}" for k in range(40)], "asin": [f"B{k:03d}" for k in range(40)]}).write_csv(items)
    # of user a: i30 i31 .. i39 is one run, i0 .. i9 the next
    rows = [("a", f"i{k}", n) for n, k in enumerate([*range(30, 40), *range(10)])] + [("b", "i3", 0), ("b", "i2", 1)]
    before = dataset(tmp_path, rows, order="day")
    after = sequences(shuffle_ties(before, seed=0, table=items, column="asin"))
    old = sequences(before)
    assert sorted(after[0][:10]) == sorted(old[0][:10]) and after[0][:10] != old[0][:10]
    assert sorted(after[0][10:]) == sorted(old[0][10:]) and after[0][10:] != old[0][10:]
    assert after[1] == ["i3", "i2"]


def test_numbers_of_a_text_file_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    table = pl.DataFrame({"item_id": [f"i{k}" for k in range(40)], "place": [str(8 + k) for k in range(40)]})
    table.write_csv(tmp_path / "items.csv")
    table.cast({"place": pl.Int64}).write_parquet(tmp_path / "items.parquet")
    before = dataset(tmp_path, [("a", f"i{k}", n) for n, k in enumerate(range(40))] + [("b", "i0", 0)], order="day")
    orders = [
        sequences(shuffle_ties(before, seed=0, table=tmp_path / f"items.{suffix}", column="place"))
        for suffix in ("csv", "parquet")
    ]
    assert orders[0] == orders[1] and orders[0][0].index("i39") < 30


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the logs have no timestamp; name the item column"):
        shuffle_ties(dataset(tmp_path, DAYS, order="day"), seed=0)
    items = tmp_path / "items.csv"
    pl.DataFrame({"item_id": ["i0"], "asin": ["B0"]}).write_csv(items)
    with pytest.raises(UserError, match=r"items\.csv: item i\d+ has no asin"):
        shuffle_ties(dataset(tmp_path, DAYS, order="day"), seed=0, table=items, column="asin")
