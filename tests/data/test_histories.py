"""Files of users and their histories: ids by the rule of the logs, fields within fields."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from adagrpo.data.histories import UserHistories, about_how_many, read_histories
from adagrpo.errors import UserError


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_fields_within_fields_are_found_as_in_logs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.{suffix}"
    rows = [{"user": {"id": 7}, "seen": {"items": [3, 4]}}, {"user": {"id": 8}, "seen": {"items": []}}]
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pl.DataFrame(rows).write_parquet(path)
    found = list(read_histories(path, 9, user="user.id", history="seen.items"))
    assert found == [UserHistories([7, 8], [[3, 4], []])]


def test_a_line_without_the_inner_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text('{"user": {"id": 7}}\n{"user": 8}\n')
    with pytest.raises(UserError, match=r"users\.jsonl, row 2: not a JSON object with user\.id"):
        list(read_histories(path, 9, user="user.id"))


def test_a_history_that_begins_late_in_the_file_is_not_left_out(tmp_path: Path) -> None:
    """Which fields there are is read from the first 4 MB."""
    path = tmp_path / "users.jsonl"
    long = {"note": "x" * 4000}
    rows = [{"user_id": user} | long | ({"history": [3]} if user == 1200 else {}) for user in range(1300)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"row 1201: has history, which the first rows have not; give it to all"):
        list(read_histories(path, 9))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_whole_numbers_are_ids_however_they_are_stored(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"users.{suffix}"
    table = pl.DataFrame({"user_id": [7.0, 8.5], "history": [[3.0], [4.0]]})
    table[:1].write_ndjson(path) if suffix == "jsonl" else table[:1].write_parquet(path)
    assert list(read_histories(path, 9)) == [UserHistories([7], [[3]])]
    table.write_ndjson(path) if suffix == "jsonl" else table.write_parquet(path)
    with pytest.raises(UserError, match=r"row 2: user_id is 8\.5; expected an id, a text or a whole number"):
        list(read_histories(path, 9))


@pytest.mark.parametrize("rows", [",3\n", '"",3\n', '" ",3\n', '"",3\nu2,"[3, ""a""]"\n'])
def test_a_user_without_an_id_is_refused(tmp_path: Path, rows: str) -> None:
    """However the other rows are quoted."""
    (tmp_path / "users.csv").write_text("user_id,history\nu1,3 4\n" + rows)
    with pytest.raises(UserError, match=r"users\.csv, row 2: user_id is .*; expected an id"):
        list(read_histories(tmp_path / "users.csv", 9))


def test_a_file_that_was_cut_is_one_line(tmp_path: Path) -> None:
    packed = gzip.compress(b"user_id\n" + b"\n".join(b"%d" % user for user in range(9999)))
    (tmp_path / "users.csv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"users\.csv\.gz: cannot be read as CSV: Compressed file ended"):
        about_how_many(tmp_path / "users.csv.gz")
