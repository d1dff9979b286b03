"""The k-core, the numbering and the order of interactions, and what was shown to whom after how many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.dataset import Dataset, build_dataset, in_hash_order
from adagrpo.data.logs.interactions import Columns, Logs, read_logs
from adagrpo.errors import UserError

NO_REJECTS = pl.DataFrame(schema={"file": pl.String, "row": pl.Int64, "reason": pl.String})


def make_logs(rows: list[tuple[object, object, int]], impressions: pl.DataFrame | None = None) -> Logs:
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Logs(table, impressions, NO_REJECTS, len(rows), 0)


def sequences(dataset: Dataset) -> dict[object, list[object]]:
    table = dataset.interactions.join(dataset.users, on="user").join(dataset.items, on="item").sort("user", "position")
    return {user: part["item_id"].to_list() for (user,), part in table.group_by("user_id", maintain_order=True)}


def k_core_twin(rows: list[tuple[int, int, int]], min_user: int, min_item: int) -> list[tuple[int, int, int]]:
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        left = [row for row in rows if users[row[0]] >= min_user and items[row[1]] >= min_item]
        if len(left) == len(rows):
            return rows
        rows = left


def test_dataset_by_hand() -> None:
    rows = [("u2", "b", 5), ("u1", "c", 2), ("u1", "a", 1), ("u2", "b", 4), ("u2", "a", 4), ("u1", "c", 2)]
    dataset = build_dataset(make_logs(rows))
    assert in_hash_order(pl.Series(["c", "b", "a"])).to_list() == ["a", "b", "c"]  # by chance
    assert dataset.users.rows() == [(0, "u1"), (1, "u2")]
    assert dataset.items.rows() == [(0, "a", "", []), (1, "b", "", []), (2, "c", "", [])]
    assert dataset.interactions.rows() == [
        (0, 0, 0, 1),
        (0, 2, 1, 2),
        (0, 2, 2, 2),
        (1, 1, 0, 4),  # of equal times, the first in the file
        (1, 0, 1, 4),
        (1, 1, 2, 5),
    ]
    assert dataset.interactions.columns == ["user", "item", "position", "timestamp"]
    assert dataset.interactions.dtypes[:3] == [pl.Int32] * 3
    assert dataset.impressions is None


def test_k_core_against_its_definition() -> None:
    rng = np.random.default_rng(1)
    for min_user, min_item in ((1, 1), (3, 1), (2, 3), (4, 4)):
        rows = [(u, i, t) for t, (u, i) in enumerate((rng.zipf(1.5, (400, 2)) % 60).tolist())]
        expected = k_core_twin(rows, min_user, min_item)
        dataset = build_dataset(make_logs(rows), min_user_interactions=min_user, min_item_interactions=min_item)
        assert sequences(dataset) == {
            user: [row[1] for row in expected if row[0] == user] for user in sorted({row[0] for row in expected})
        }
        assert sorted(dataset.items["item_id"]) == sorted({row[1] for row in expected})
        assert dataset.summary["interactions_dropped"] == len(rows) - len(expected)


def test_numbering_does_not_depend_on_the_order_of_the_file() -> None:
    rows = [(u, i, 10 * u + t) for u in range(4) for t, i in enumerate((u, 7, u + 1))]
    one, other = build_dataset(make_logs(rows)), build_dataset(make_logs(rows[::-1]))
    assert one.interactions.equals(other.interactions) and one.items.equals(other.items)


def test_catalogue_and_item_table() -> None:
    items = pl.DataFrame({"item_id": [1, 2, 9], "text": ["one", "two", "nine"], "attributes": [["x"], [], ["z"]]})
    logs = make_logs([(1, 2, 1), (1, 4, 2), (2, 2, 1)])
    assert build_dataset(logs, items).items.rows() == [(0, 4, "", []), (1, 2, "two", [])]
    kept = build_dataset(logs, items, keep_unseen_items=True)
    assert kept.summary["items_described"] == 1 and "items_described" not in build_dataset(logs).summary
    assert kept.items["item_id"].to_list() == in_hash_order(pl.Series([1, 2, 4, 9])).to_list() == [4, 1, 2, 9]
    assert kept.items["attributes"].to_list() == [[], ["x"], [], ["z"]]
    assert kept.interactions["item"].to_list() == [2, 0, 2]
    mixed = items.with_columns(item_id=pl.Series(["2", "x", "y"]))  # the logs' integers are text here
    assert build_dataset(logs, mixed).items.rows() == [(0, "4", "", []), (1, "2", "one", ["x"])]


def test_too_little_is_left() -> None:
    for rows in ([(1, 1, 1), (1, 2, 2)], [(1, 1, 1), (2, 1, 2)]):
        with pytest.raises(UserError, match="two of each are needed"):
            build_dataset(make_logs(rows))
    with pytest.raises(UserError, match="0 users and 0 items are left"):
        build_dataset(make_logs([(1, 1, 1), (2, 2, 2)]), min_user_interactions=2)


def test_history_of_impressions_against_a_loop() -> None:
    rng = np.random.default_rng(2)
    rows = [(u, i, t) for u, i, t in rng.integers((9, 12, 15), size=(200, 3)).tolist()]
    shown = pl.DataFrame(
        {
            "user_id": rng.integers(12, size=300),  # users 9 to 11 and items 12 to 14 have no interaction
            "item_id": rng.integers(15, size=300),
            "timestamp": rng.integers(-1, 17, size=300),
            "clicked": rng.integers(2, size=300) == 1,
            "slot": pl.Series(np.arange(300), dtype=pl.Int32),  # tells the rows apart
        }
    )
    dataset = build_dataset(make_logs(rows, shown))
    assert dataset.impressions is not None
    counted = ["user", "item", "history_length", "history_until", "clicked"]
    assert dataset.impressions.columns == [*counted, "timestamp", "slot"]
    expected, numbers = [], dataset.items["item_id"].to_list()
    for user, item, time, clicked, slot in sorted(shown.rows(), key=lambda row: (row[0], row[2])):
        if user < 9 and item < 12:
            times = [row[2] for row in rows if row[0] == user]
            number = numbers.index(item)
            before, until = (sum(t < time for t in times), sum(t <= time for t in times))
            expected.append((user, number, before, until, clicked, time, slot))
    assert dataset.impressions.rows() == expected
    assert dataset.summary["impressions_dropped"] == 300 - len(expected)


def test_order_instead_of_time(tmp_path: Path) -> None:
    text = "user_id,item_id,n,clicked\n1,1,20,\n1,2,10,1\n1,3,15,0\n2,1,-5,\n2,2,0.5,\n1,1,20,0\n"
    (tmp_path / "a.csv").write_text(text)
    logs = read_logs([tmp_path / "a.csv"], Columns(order="n", clicked="clicked"))
    assert logs.time_key == "position"
    dataset = build_dataset(logs)
    assert dataset.interactions.rows() == [(0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1)]
    assert dataset.impressions is not None
    assert dataset.impressions.rows() == [(0, 1, 0, 1, True), (0, 0, 1, 2, False)]  # item 3 was never chosen


def test_ties_of_order_and_time_keep_the_order_of_the_file() -> None:
    rng = np.random.default_rng(3)
    rows = [(u, i, t) for u, i, t in rng.integers((5, 40, 4), size=(300, 3)).tolist()]
    twin: dict[object, list[object]] = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):  # sorted() is stable
        twin.setdefault(user, []).append(item)
    assert sequences(build_dataset(make_logs(rows))) == twin
    ordered = make_logs(rows)
    by_order = Logs(ordered.interactions.rename({"timestamp": "position"}), None, NO_REJECTS, 300, 0)
    assert sequences(build_dataset(by_order)) == twin


def test_impressions_that_only_the_kept_unseen_items_explain() -> None:
    shown = pl.DataFrame({"user_id": [1, 1], "item_id": [9, 8], "timestamp": [2, 2], "clicked": [False, False]})
    items = pl.DataFrame({"item_id": [9], "text": ["nine"], "attributes": [["z"]]})
    logs = make_logs([(1, 2, 1), (1, 4, 3), (2, 2, 1)], shown)
    without, kept = build_dataset(logs, items), build_dataset(logs, items, keep_unseen_items=True)
    assert without.impressions is not None and kept.impressions is not None
    assert without.impressions.is_empty() and without.summary["impressions_dropped"] == 2
    assert kept.impressions.rows() == [(0, 2, 1, 1, False, 2)] and kept.summary["impressions_dropped"] == 1
