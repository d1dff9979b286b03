"""The prepared files: what is written comes back, and a held-out target is in one file alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.dataset import Dataset, build_dataset
from adagrpo.data.logs.interactions import Columns, Logs, read_logs
from adagrpo.data.prepared import (
    SHOWN_LATER,
    load_cases,
    load_impressions,
    load_item_ids,
    load_items,
    load_training,
    load_user_ids,
    write_prepared,
)
from adagrpo.data.splits import Split, for_some_users, leave_one_out, temporal
from adagrpo.types import Ragged

REJECTS = pl.DataFrame({"file": ["a.csv"], "row": [3], "reason": ["item_id is empty"]})


def make_dataset(
    sequences: list[list[str]], impressions: pl.DataFrame | None = None, times: list[list[int]] | None = None
) -> Dataset:
    rows = [
        (f"u{user}", item, times[user][n] if times else n)
        for user, items in enumerate(sequences)
        for n, item in enumerate(items)
    ]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return build_dataset(Logs(table, impressions, REJECTS, len(rows) + 1, 0))


def offsets_of(dataset: Dataset) -> np.ndarray:
    lengths = np.bincount(dataset.interactions["user"].to_numpy(), minlength=len(dataset.users))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


SEQUENCES = [["a", "b", "c", "d", "e"], ["b", "a"], ["e", "d", "a", "b"], ["c", "a", "b"]]
ITEMS = "adbec"  # in the order of their numbers


def named(rows: Ragged) -> list[str]:
    """The items of each row by their ids, end to end."""
    return ["".join(ITEMS[item] for item in rows.row(row)) for row in range(len(rows))]


def prepare(directory: Path, sequences: list[list[str]], impressions: pl.DataFrame | None = None) -> Path:
    dataset = make_dataset(sequences, impressions)
    write_prepared(dataset, leave_one_out(np.diff(offsets_of(dataset))), directory)
    return directory


def test_round_trip(tmp_path: Path) -> None:
    directory = prepare(tmp_path / "run", SEQUENCES)
    training = load_training(directory)
    assert named(training) == ["abc", "ba", "ed", "c"]
    assert training.values.dtype == np.int32 and training.offsets.dtype == np.int64
    validation, test = load_cases(directory, "validation"), load_cases(directory, "test")
    assert validation.users.tolist() == test.users.tolist() == [0, 2, 3]
    assert ["".join(ITEMS[item] for item in cases.targets) for cases in (validation, test)] == ["daa", "ebb"]
    assert named(validation.histories) == ["abc", "ed", "c"]
    assert named(test.histories) == ["abcd", "eda", "ca"]
    assert load_item_ids(directory).to_list() == list(ITEMS)
    assert load_user_ids(directory).to_list() == ["u0", "u1", "u2", "u3"]
    assert load_items(directory).columns == ["item", "item_id", "text", "attributes"]
    assert load_impressions(directory) is None
    assert pl.read_parquet(directory / "rejects.parquet").equals(REJECTS)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["users"] == 4 and summary["items"] == 5 and summary["rows_rejected"] == 1
    assert summary["training_interactions"] == 8 and summary["validation_cases"] == summary["test_cases"] == 3
    assert pl.read_parquet(directory / "test.parquet").rows() == [(0, 3, 4), (2, 2, 3), (3, 2, 2)]  # e, b, b


def test_the_training_logs_end_where_training_ends_in_the_ids_of_the_logs(tmp_path: Path) -> None:
    table = pl.read_parquet(prepare(tmp_path / "run", SEQUENCES) / "training_logs.parquet")
    assert table.columns == ["user_id", "item_id", "timestamp"]
    expected = [
        (f"u{user}", item, n) for user, items in enumerate(["abc", "ba", "ed", "c"]) for n, item in enumerate(items)
    ]
    assert table.rows() == expected


def test_other_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split"):
        load_cases(prepare(tmp_path, SEQUENCES), "train")


def test_temporal_round_trip_against_a_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = [np.sort(rng.integers(0, 30, size=rng.integers(1, 9))).tolist() for _ in range(60)]
    sequences = [[f"i{rng.integers(20):02d}" for _ in row] for row in times]
    dataset = make_dataset(sequences, times=times)
    split = temporal(
        dataset.interactions["timestamp"].to_numpy(), offsets_of(dataset), validation_from=12, test_from=21
    )
    write_prepared(dataset, split, tmp_path)
    ids, users = load_item_ids(tmp_path).to_list(), load_user_ids(tmp_path).to_list()
    training = load_training(tmp_path)
    for row, user in enumerate(users):
        u = int(user[1:])
        seen = [item for item, time in zip(sequences[u], times[u], strict=True) if time < 12]
        assert [ids[item] for item in training.row(row)] == seen
    for name, start, end in (("validation", 12, 21), ("test", 21, 99)):
        cases, expected = load_cases(tmp_path, name), {}
        for user in users:
            u = int(user[1:])
            first = next((n for n, time in enumerate(times[u]) if start <= time < end), 0)
            if first:
                expected[user] = (sequences[u][:first], sequences[u][first])
        actual = {
            users[cases.users[n]]: ([ids[item] for item in cases.histories.row(n)], ids[cases.targets[n]])
            for n in range(len(cases))
        }
        assert actual == expected and len(actual) > 10


def impressions_of(sequences: list[list[str]]) -> pl.DataFrame:
    """At every interaction, what was chosen and one item that was not."""
    rows = [
        (f"u{user}", item, n, chosen)
        for user, items in enumerate(sequences)
        for n, real in enumerate(items)
        for item, chosen in ((real, True), ("b", False))
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "clicked"], orient="row")


@pytest.mark.parametrize(("position", "only"), [(4, "test.parquet"), (3, "validation.parquet")])
def test_a_changed_target_changes_one_file_alone(tmp_path: Path, position: int, only: str) -> None:
    changed = [list(items) for items in SEQUENCES]
    changed[0][position] = "a"
    # The items a to e all occur elsewhere too, so that the catalogue stays what it was.
    one = contents(prepare(tmp_path / "one", SEQUENCES, impressions_of(SEQUENCES)))
    other = contents(prepare(tmp_path / "other", changed, impressions_of(changed)))
    assert one.keys() == other.keys() and "impressions.parquet" in one
    assert [name for name in sorted(one) if one[name] != other[name]] == [only]


@pytest.mark.parametrize(("place", "only"), [(4, "test.parquet"), (2, "validation.parquet"), (5, "later.parquet")])
def test_a_changed_target_of_a_split_in_time(tmp_path: Path, place: int, only: str) -> None:
    times = [[0, 1, 10, 11, 20, 21], [0, 1, 12, 13, 22, 23], [0, 1, 2, 3, 4, 5]]
    sequences = [list("abcdea"), list("bcdeab"), list("abcdea")]

    def prepare_in_time(name: str) -> dict[str, bytes]:
        shown = impressions_of(sequences).with_columns(pl.Series("timestamp", np.repeat(np.concatenate(times), 2)))
        dataset = make_dataset(sequences, shown, times)
        timestamps = dataset.interactions["timestamp"].to_numpy()
        split = temporal(timestamps, offsets_of(dataset), validation_from=10, test_from=20)
        write_prepared(dataset, split, tmp_path / name)
        return contents(tmp_path / name)

    one = prepare_in_time("one")
    sequences[0][place] = "b"
    other = prepare_in_time("other")
    assert one.keys() == other.keys() and "impressions.parquet" in one
    assert [name for name in sorted(one) if one[name] != other[name]] == [only]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    assert contents(prepare(tmp_path / "a", SEQUENCES)) == contents(prepare(tmp_path / "b", SEQUENCES))


def test_equal_logs_give_equal_bytes(tmp_path: Path) -> None:
    # enough rows that hash tables and threads would show
    rng = np.random.default_rng(0)
    names = {"user_id": ("u", 3000), "item_id": ("i", 900)}
    ids = {name: [f"{letter}{n}" for n in rng.integers(count, size=40_000)] for name, (letter, count) in names.items()}
    table = pl.DataFrame(ids | {"timestamp": rng.integers(50, size=40_000), "clicked": rng.integers(2, size=40_000)})
    table.write_csv(tmp_path / "log.csv")
    written = []
    for name in ("a", "b"):
        logs = read_logs([tmp_path / "log.csv"], Columns(clicked="clicked"))
        dataset = build_dataset(logs, min_user_interactions=5, min_item_interactions=5)
        write_prepared(dataset, leave_one_out(np.diff(offsets_of(dataset))), tmp_path / name)
        written.append(contents(tmp_path / name))
    assert written[0] == written[1] and len(written[0]) == 10


def test_impressions_end_with_training(tmp_path: Path) -> None:
    directory = prepare(tmp_path, SEQUENCES, impressions_of(SEQUENCES))
    table = load_impressions(directory)
    assert table is not None
    assert table.columns == ["user", "item", "history_length", "clicked"]
    chosen = table.filter("clicked").rows()
    training = load_training(directory)
    assert [row[:3] for row in chosen] == [
        (user, int(item), n) for user in range(4) for n, item in enumerate(training.row(user))
    ]
    assert len(table) == 2 * len(chosen)


def test_impressions_at_the_time_of_a_target_are_held_out(tmp_path: Path) -> None:
    times = [[0, 1, 1, 2], [0, 1, 2, 2], [0, 0, 1, 2]]
    sequences = [["a", "b", "c", "d"]] * 3
    rows = [(f"u{u}", item, time, True) for u in range(3) for item, time in zip(sequences[u], times[u], strict=True)]
    shown = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "clicked"], orient="row")
    dataset = make_dataset(sequences, shown, times)
    write_prepared(dataset, leave_one_out(np.full(3, 4)), tmp_path)
    table = load_impressions(tmp_path)
    assert table is not None
    # Training is a, b. User 0 chose c, the validation target, at the same time as b: neither is certain to precede it.
    seen = [(user, ITEMS[item]) for user, item in table.select("user", "item").rows()]
    assert seen == [(0, "a"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_a_split_in_time_counts_validation_cases_of_items_that_training_lacks(tmp_path: Path) -> None:
    sequences, times = [["a", "b", "c", "d"], ["b", "d", "c"], ["a", "a"]], [[0, 3, 12, 22], [1, 11, 23], [2, 15]]
    dataset = make_dataset(sequences, times=times)
    stamps = dataset.interactions["timestamp"].to_numpy()
    write_prepared(dataset, temporal(stamps, offsets_of(dataset), validation_from=10, test_from=20), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["validation_cases"], summary["validation_cases_of_new_items"]) == (
        3,
        2,
    )  # c and d are new, a is not


def test_impressions_of_a_split_in_time_end_at_its_cut(tmp_path: Path) -> None:
    """What was shown after a user's last click, and before the cut, is a choice against it as much as before."""
    sequences, times = [["a", "b", "c", "d"], ["b", "a", "c"]], [[0, 3, 12, 22], [1, 2, 23]]
    rows = [(f"u{u}", item, time, False) for u in range(2) for time in (2, 5, 9, 10, 15, 30) for item in "dc"]
    shown = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "clicked"], orient="row")
    dataset = make_dataset(sequences, shown, times)
    stamps = dataset.interactions["timestamp"].to_numpy()
    whole = temporal(stamps, offsets_of(dataset), validation_from=10, test_from=20)
    for split in (whole, for_some_users(whole, 1, 0)):
        write_prepared(dataset, split, tmp_path)
        table = load_impressions(tmp_path)
        assert table is not None and table.columns == ["user", "item", "history_length", "clicked"]
        assert table["user"].to_list() == [0] * 6 + [1] * 6  # at 2, 5 and 9; at the cut itself it is too late
        assert table["history_length"].to_list() == [1, 1, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2]


def test_lists_are_judged_by_what_was_shown_between_the_targets_of_validation_and_test(tmp_path: Path) -> None:
    """Not by what training or the test knows, and of items that the user did not have by his validation target."""
    sequences, times = [["a", "b", "c", "d"], ["b", "a", "c"]], [[0, 3, 12, 22], [1, 2, 23]]
    rows = [(f"u{u}", item, time, item == "d") for u in range(2) for time in (9, 12, 13, 19, 20) for item in "dca"]
    shown = pl.DataFrame(
        [*rows, ("u0", "e", 14, False)], schema=["user_id", "item_id", "timestamp", "clicked"], orient="row"
    )
    dataset = make_dataset([*sequences, ["e", "e", "e"]], shown, [*times, [0, 1, 2]])
    stamps = dataset.interactions["timestamp"].to_numpy()
    write_prepared(dataset, temporal(stamps, offsets_of(dataset), validation_from=10, test_from=20), tmp_path)
    table = pl.read_parquet(tmp_path / SHOWN_LATER)
    # u1 has no validation target; of u0, who then had a, b and c, the d of 13 and 19 are one row, e is another
    assert table.columns == ["user", "item", "clicked", "timestamp"]
    assert [(user, ITEMS[item], *rest) for user, item, *rest in table.rows()] == [
        (0, "d", True, 13),
        (0, "e", False, 14),
    ]


def test_a_leaking_split_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(SEQUENCES)
    lengths = np.diff(offsets_of(dataset))
    with pytest.raises(ValueError, match="user 0"):
        write_prepared(dataset, Split(lengths, lengths - 1, np.full(4, -1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
