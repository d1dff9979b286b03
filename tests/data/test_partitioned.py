"""Logs that are divided by user among workers give the data set that one process makes, and its errors."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from adagrpo.data import ColumnMapping, Dataset, Refusals, build_dataset, partitioned, partitions, read_logs
from adagrpo.data.logs import chunks
from adagrpo.data.logs.log_fields import LogOptions
from adagrpo.data.partitioned import build_partitioned
from adagrpo.errors import UserError
from adagrpo.executors import SERIAL, Executor

LEAST = {"min_user_interactions": 3, "min_item_interactions": 4}


def table(rows: int = 4000, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    users, items = rng.zipf(1.4, rows) % 300, rng.zipf(1.3, rows) % 90
    return pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": rng.integers(0, 40, rows),
            "rating": rng.integers(1, 6, rows),
            "clicked": rng.integers(0, 2, rows),
            "slot": rng.integers(0, 5, rows),
            "event": rng.choice(["view", "buy"], rows),
        }
    )


def files(folder: Path, frame: pl.DataFrame) -> list[Path]:
    """The rows in files of three kinds; in the last one a user and an item have ids that are no numbers."""
    texts = frame.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    frame[:1500].write_parquet(folder / "a.parquet")
    frame[1500:2200].write_csv(folder / "b.csv")
    last = texts[2200:].with_columns(pl.when(pl.col("item_id") == "1").then(pl.lit("x1")).otherwise("item_id"))
    last.write_ndjson(folder / "c.jsonl")
    return [folder / name for name in ("a.parquet", "b.csv", "c.jsonl")]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks and ranges of few rows."""
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 400)
    monkeypatch.setattr(partitioned, "CHUNK_ROWS", 400)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 6000)
    monkeypatch.setattr(partitioned, "RANGE_ROWS", 500)


def both(
    folder: Path, paths: list[Path], columns: ColumnMapping, options: LogOptions, items: Any = None, **least: int
) -> list[Dataset]:
    given = {name: getattr(options, name) for name in LogOptions.__dataclass_fields__}
    alone = build_dataset(read_logs(paths, columns, **given), items, **least)  # type: ignore[arg-type]
    divided = build_partitioned(paths, columns, options, items, folder, SERIAL, **least)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    return [alone, divided]


def assert_equal(alone: Dataset, divided: Dataset) -> None:
    for name in ("users", "items", "interactions", "rejects"):
        one, other = getattr(alone, name), getattr(divided, name)
        assert one.schema == other.schema and one.equals(other), name
    assert (alone.impressions is None) == (divided.impressions is None)
    if alone.impressions is not None and divided.impressions is not None:
        assert alone.impressions.schema == divided.impressions.schema
        assert alone.impressions.equals(divided.impressions)
    assert alone.summary == divided.summary and alone.understood == divided.understood


IMPRESSIONS = ColumnMapping(clicked="clicked", slot="slot", rating="rating", event="event")


@pytest.mark.parametrize(
    ("columns", "options", "least"),
    [
        (ColumnMapping(), LogOptions(), {}),
        (ColumnMapping(rating="rating"), LogOptions(min_rating=3, drop_duplicates=True), LEAST),
        (IMPRESSIONS, LogOptions(keep_events=("view",), min_rating=2, drop_duplicates=True), {}),
        (IMPRESSIONS, LogOptions(refuse=Refusals(after=35, repeats=True), max_bad_rows=9999), LEAST),
        (ColumnMapping(order="timestamp", rating="rating", slot="slot"), LogOptions(click_rating=4), LEAST),
    ],
)
def test_the_same_data_set(tmp_path: Path, columns: ColumnMapping, options: LogOptions, least: dict[str, int]) -> None:
    assert_equal(*both(tmp_path, files(tmp_path, table()), columns, options, **least))


def test_a_row_without_a_rating_was_shown_and_not_clicked(tmp_path: Path) -> None:
    ratings = pl.when(pl.col("rating") == 5).then(None).otherwise("rating").alias("rating")
    frame = table().with_columns(ratings)
    columns, options = ColumnMapping(rating="rating"), LogOptions(click_rating=4)
    alone, divided = both(tmp_path, files(tmp_path, frame), columns, options)
    assert_equal(alone, divided)
    assert alone.impressions is not None and divided.impressions is not None
    assert len(alone.interactions) == (frame["rating"] == 4).sum() == alone.impressions["clicked"].sum()
    assert len(alone.impressions) + alone.summary["impressions_dropped"] == len(frame)


def test_whole_numbers_stay_whole_numbers(tmp_path: Path) -> None:
    frame = table(900)
    frame[:500].write_parquet(tmp_path / "a.parquet")
    frame[500:].with_columns(pl.col("user_id").cast(pl.String)).write_parquet(tmp_path / "b.parquet")
    items = pl.DataFrame({"item_id": [5, 1], "text": ["five", "one"], "attributes": [["a"], ["b"]]})
    found = both(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"], ColumnMapping(), LogOptions(), items)
    assert_equal(*found)
    assert found[1].users["user_id"].dtype == pl.Int64 and "five" in found[1].items["text"]


def test_dates_and_bad_rows_are_read_alike(tmp_path: Path) -> None:
    rows = [f"u{n % 7},{n % 5},2024-01-{1 + n % 28:02d}{'T10:00' if n % 3 else ''}" for n in range(1000)]
    rows[3], rows[700], rows[900] = "u1,2,1700000000", ",3,2024-01-02", "u9,4"
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    found = both(tmp_path, [tmp_path / "log.csv"], ColumnMapping(), LogOptions(max_bad_rows=3))
    assert_equal(*found)
    assert len(found[1].rejects) == 3 and found[1].understood["time"]["without_offset"] > 900


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            LogOptions(max_bad_rows=1),
            r"log.csv, row 3: user_id is empty.*the first of 3 bad rows; data.max_bad_rows is 1",
        ),
        (LogOptions(max_bad_rows=3, refuse=Refusals(repeats=True)), r"row 3: .*the first of 4 bad rows"),
        (LogOptions(max_bad_rows=3, min_rating=9), r"log.csv: no interaction among 9 rows: 3 rejected, 6 filtered"),
    ],
)
def test_the_same_errors(tmp_path: Path, options: LogOptions, message: str) -> None:
    rows = ["1,1,1,5", "2,2,2,5", ",2,3,5", ",2,4,5", "1,,4,5", "1,2,3,4", "1,1,1,5", "3,2,1,2", "3,1,1,1"]
    text = "user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n"
    (tmp_path / "log.csv").write_text(text)
    given = {name: getattr(options, name) for name in LogOptions.__dataclass_fields__}
    columns, paths = ColumnMapping(rating="rating"), [tmp_path / "log.csv"]
    with pytest.raises(UserError, match=message) as alone:
        build_dataset(read_logs(paths, columns, **given))
    with pytest.raises(UserError) as divided:
        build_partitioned(paths, columns, options, None, tmp_path, SERIAL)
    assert str(alone.value) == str(divided.value)


def test_a_data_set_of_next_to_nothing_is_refused_alike(tmp_path: Path) -> None:
    paths = files(tmp_path, table())
    with pytest.raises(UserError, match=r"0 users and 0 items are left"):
        build_partitioned(paths, ColumnMapping(), LogOptions(), None, tmp_path, SERIAL, min_user_interactions=9999)


def test_machines_that_hash_differently_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = partitions.Partitioning._read

    def other(self: partitions.Partitioning, task: Any) -> Any:
        said = read(self, task)
        if task["number"] == 1:  # all rows in the last bucket
            said["chunks"] = [[0] * 256 + [chunk[-1]] for chunk in said["chunks"]]
        return said

    monkeypatch.setattr(partitions.Partitioning, "_read", other)
    with pytest.raises(RuntimeError, match="hash text differently"):
        build_partitioned(files(tmp_path, table()), ColumnMapping(), LogOptions(), None, tmp_path, SERIAL)


RAY = pytest.param(Executor("ray", 2), marks=pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"))


@pytest.mark.slow
@pytest.mark.parametrize("executor", [Executor("processes", 2), RAY])
def test_workers_give_it_too(tmp_path: Path, executor: Executor) -> None:
    paths = files(tmp_path, table())
    options = replace(LogOptions(), drop_duplicates=True)
    alone = build_partitioned(paths, IMPRESSIONS, options, None, tmp_path, SERIAL, **LEAST)
    assert_equal(alone, build_partitioned(paths, IMPRESSIONS, options, None, tmp_path, executor, **LEAST))
