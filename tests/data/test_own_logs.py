"""Logs as shops have them: separators, encodings, nested fields, times of ISO 8601, duplicates, and a look at them."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from adagrpo.data.dataset import build_dataset
from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.logs.items import read_items
from adagrpo.data.logs.preview import format_lines, preview_logs
from adagrpo.errors import UserError
from adagrpo.pipeline.suggest import recipe_text
from adagrpo.readers.formats import csv_header, files_of

ROWS = [("ä;1", "x|1", 5), ("b", 'y\t"2"', 6), ("b,c", "😀", 7)]
NESTED = Columns(user="user.id", item="e.item.sku")


def write(path: Path, content: str | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv.gz"])
def test_separators_and_encodings(tmp_path: Path, suffix: str, separator: str, encoding: str) -> None:
    text = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(separator=separator)
    data = ("\ufeff" + text if encoding == "utf-16-be" else text).encode(encoding)
    path = write(tmp_path / f"log.{suffix}", data)
    logs = read_logs([path], Columns())
    assert logs.interactions.rows() == ROWS and not len(logs.rejects)
    file = logs.understood["files"][0]
    assert file["separator"] == separator and file["rows"] == 3 and file["packed"] == suffix.endswith("gz")
    assert file["encoding"] == {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark"}.get(encoding, "UTF-16")
    assert read_items(path, text_columns=["user_id"])["text"].to_list() == ["ä;1", "b", "b,c"]


def test_a_folder_is_the_files_in_it_but_for_those_of_the_engine_that_wrote_it(tmp_path: Path) -> None:
    names = ["b/part=1/x.csv", "a.parquet", "_SUCCESS", "_tmp/x.csv", ".crc/x.csv", "b/.x.csv", "b/notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "user_id,item_id,timestamp\na,1,5\n")
    alone = tmp_path / "b" / ".x.csv"  # named itself, it is read
    assert files_of([tmp_path, alone]) == [tmp_path / "a.parquet", tmp_path / "b/part=1/x.csv", alone]
    with pytest.raises(UserError, match=r"_tmp/none: a folder without a file that ends in \.csv"):
        (tmp_path / "_tmp" / "none").mkdir()
        files_of([tmp_path / "_tmp" / "none"])


def test_a_simulated_shop_is_read_without_its_truth(tmp_path: Path) -> None:
    for name in ("logs.parquet", "manifest.json", "truth/users.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert files_of([tmp_path]) == [tmp_path / "logs.parquet"]


def test_no_part_of_a_folder_is_left_out_silently_or_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("elsewhere/x.csv", "logs/a/x.csv", "logs/run/.adagrpo", "logs/run/prepare/train.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "user_id,item_id,timestamp\na,1,5\n")
    logs = tmp_path / "logs"
    (logs / "b").symlink_to(tmp_path / "elsewhere")
    (logs / "c").symlink_to(logs)  # a circle
    assert files_of([logs]) == [logs / "a/x.csv", logs / "b/x.csv"]  # and not what a run in it wrote
    listing = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listing(path if path != str(logs / "a") else tmp_path / "none"))
    with pytest.raises(UserError, match=r"none: cannot be read \(No such file or directory\), and its rows would be"):
        files_of([logs])


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_column_that_the_header_names_twice_is_refused_if_it_is_read(tmp_path: Path, quote: str) -> None:
    path = write(tmp_path / "log.csv", f"user_id,{quote}item_id{quote},item_id,timestamp,,\r\na,1,2,5,,\n")
    refused = r"log.csv: the header names 'item_id' 2 times; rename the others"
    with pytest.raises(UserError, match=refused):
        read_logs([path], Columns())
    with pytest.raises(UserError, match=refused):
        preview_logs([path])
    with pytest.raises(UserError, match=refused):
        read_items(path)
    write(path, "user_id,item_id,price,price,timestamp,,\na,1,2,2,5,,\n")
    assert read_logs([path], Columns()).interactions.rows() == [("a", 1, 5)]


def test_utf_16_that_is_cut_and_utf_32(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\na,x,1\nb,y,2\n"
    cut = write(tmp_path / "cut.csv", text.encode("utf-16")[:-3])
    logs = read_logs([cut], Columns(), max_bad_rows=1)
    assert logs.interactions.rows() == [("a", "x", 1)] and "\ufffd" in logs.rejects["reason"][0]
    with pytest.raises(UserError, match="is encoded in UTF-32; write it as UTF-8"):
        read_logs([write(tmp_path / "wide.csv", text.encode("utf-32"))], Columns())


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl"])
def test_text_that_is_not_utf_8_is_named(tmp_path: Path, suffix: str) -> None:
    rows = [("Müller", "x", 1), ("b", "y", 2)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    text = table.write_ndjson() if suffix == "jsonl" else table.write_csv()
    logs = read_logs([write(tmp_path / f"log.{suffix}", text.encode("latin-1"))], Columns(), max_bad_rows=1)
    said = "save it as UTF-8 (iconv -f latin1 -t utf-8)"
    assert logs.rejects["reason"][0].endswith(f"if it is not UTF-8, {said}")
    (line, _) = format_lines(logs.understood)
    assert "not UTF-8" in line and line.endswith(said)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "ndjson.gz", "json", "json.gz"])
def test_nested_fields_of_json(tmp_path: Path, suffix: str) -> None:
    lines = [
        {"user": {"id": 1}, "e": {"item": {"sku": "k"}}, "timestamp": 3},
        {"user.id": 2, "user": {"id": 9}, "e": {"item": {"sku": "l"}}, "timestamp": 4},  # the name itself comes first
        {"user": {"id": [1]}, "e": {"item": {"sku": "k"}}, "timestamp": 5},
        {"user": 7, "e": {"item": {"sku": "k"}}, "timestamp": 6},
    ]
    path = write(tmp_path / f"log.{suffix}", "\n".join(map(json.dumps, lines)))
    logs = read_logs([path], NESTED, max_bad_rows=2)
    assert logs.interactions.rows() == [(1, "k", 3), (2, "l", 4)]
    assert [reason.partition(",")[0] for reason in logs.rejects["reason"]] == [
        "user.id is of type list",
        "user.id is empty",
    ]


def test_a_field_that_few_lines_have(tmp_path: Path) -> None:
    """Those of a later kind of event had no such field, though the file has it."""
    rows = [{"user_id": n % 9, "item_id": n % 30, "timestamp": n} for n in range(5000)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row | ({"rating": 4} if n > 4000 else {})) + "\n" for n, row in enumerate(rows)))
    assert preview_logs([path])["roles"]["rating"]["column"] == "rating"
    logs = read_logs([path], Columns(rating="rating"), min_rating=4)
    assert len(logs.interactions) == 999 and logs.rows_filtered == 4001


def test_nested_fields_of_parquet(tmp_path: Path) -> None:
    table = pl.DataFrame({"user": [{"id": 1}, None], "e": [{"item": {"sku": "k"}}] * 2, "timestamp": [3, 4]})
    table.write_parquet(tmp_path / "log.parquet")
    logs = read_logs([tmp_path / "log.parquet"], NESTED, max_bad_rows=1)
    assert logs.interactions.rows() == [(1, "k", 3)] and logs.rejects["row"].to_list() == [2]
    with pytest.raises(UserError, match=r"no column 'user.name'; did you mean 'user.id'\?"):
        read_logs([tmp_path / "log.parquet"], Columns(user="user.name"))


TIMES = {  # seconds since 1970, by hand
    "1970-01-02": 86400,
    "1970-01-02T00:01": 86460,
    "1970-01-02 00:00:01": 86401,
    "1970-01-02T00:00:01Z": 86401,
    "1970-01-02T00:00:01.5z": 86401.5,
    "1970-01-02 00:00:01,250000999": 86401.25,
    "1970-01-02T02:00:00+02:00": 86400,
    "1970-01-01T19:00:00-0500": 86400,
    "1970-01-02 01:00+01": 86400,
    "1970-01-02 00:00:00 UTC": 86400,
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_times_of_iso_8601(tmp_path: Path, suffix: str) -> None:
    bad = ["1970-02-30", "5", "1970-01-02T25:00", "1969-12-31", "1.2.1970", "1970-01-02T00:00:01+"]
    table = pl.DataFrame({"timestamp": [*TIMES, *bad]}, strict=False)
    table = table.with_row_index("user_id").with_columns(item_id=pl.lit("x"))
    path = tmp_path / f"log.{suffix}"
    (table.write_csv(path, separator=";") if suffix == "csv" else table.write_ndjson(path))
    logs = read_logs([path], Columns(), max_bad_rows=len(bad))
    assert logs.interactions["timestamp"].to_list() == list(TIMES.values())
    assert logs.rejects["row"].to_list() == list(range(len(TIMES) + 1, len(table) + 1))
    assert (
        "timestamp is '5', expected ISO 8601 from 1970 on, as in the rest of the column (1970-01-02)"
        in logs.rejects["reason"][1]
    )
    time = logs.understood["time"]
    assert (time["written_as"], time["unit"], time["without_offset"]) == ("ISO 8601", "seconds", 4)
    assert (time["from"], time["to"]) == ("1970-01-02T00:00:00Z", "1970-01-02T00:01:00Z")
    assert "4 have no offset and are read as UTC" in format_lines(logs.understood)[1]


@pytest.mark.parametrize(("dtype", "naive"), [(pl.Date, 2), (pl.Datetime, 2), (pl.Datetime("ms", "Europe/Berlin"), 0)])
def test_times_of_parquet_without_a_zone_are_counted(tmp_path: Path, dtype: Any, naive: int) -> None:
    when = pl.Series("timestamp", [86400_000, 172800_000, None], dtype=pl.Datetime("ms")).cast(dtype)
    pl.DataFrame([when]).with_columns(user_id=1, item_id=2).write_parquet(tmp_path / "log.parquet")
    logs = read_logs([tmp_path / "log.parquet"], Columns(), max_bad_rows=1)
    assert logs.understood["time"]["without_offset"] == naive and len(logs.interactions) == 2
    assert ("2 have no offset and are read as UTC" in format_lines(logs.understood)[1]) == (naive == 2)


def test_numbers_stay_as_they_are_and_their_unit_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user_id,item_id,timestamp\na,x,1700000000000\nb,y,2024-01-01\n")
    logs = read_logs([path], Columns(), max_bad_rows=1)
    assert logs.interactions["timestamp"].to_list() == [1_700_000_000_000]
    said = "timestamp is '2024-01-01', expected a number >= 0, as in the rest of the column (1700000000000)"
    assert logs.rejects["reason"][0] == said
    assert format_lines(logs.understood)[1] == (
        "times (timestamp): numbers, kept as they are, which look like milliseconds since 1970; "
        "from 2023-11-14T22:13:20Z to 2023-11-14T22:13:20Z"
    )


def test_times_of_two_units_are_said(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "user_id,item_id,timestamp\nu,1,1700000000\n")
    second = write(tmp_path / "b.csv", "user_id,item_id,timestamp\nu,2,1700000100000\n")
    (_, _, line) = format_lines(read_logs([first, second], Columns()).understood)
    said = "the lowest look like seconds since 1970 and the highest like milliseconds: write all in one unit"
    assert said in line
    for paths in ([first], [second]):
        assert "write all" not in "".join(format_lines(read_logs(paths, Columns()).understood))


def test_exact_duplicates_are_counted_and_dropped_if_asked(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\na,x,1\na,y,1\na,x,1\na,x,2\nb,x,1\nb,x,1\nb,x,1\n"
    path = write(tmp_path / "a.csv", text)
    kept = build_dataset(read_logs([path], Columns()))
    assert kept.summary["exact_duplicates"] == 3 and len(kept.interactions) == 7
    logs = read_logs([path], Columns(), drop_duplicates=True)
    assert logs.interactions.rows() == [("a", "x", 1), ("a", "y", 1), ("a", "x", 2), ("b", "x", 1)]
    dropped = build_dataset(logs).summary
    assert dropped["exact_duplicates"] == 0 and dropped["exact_duplicates_dropped"] == 3
    assert logs.rows_read == len(logs.interactions) + 3


def test_duplicates_of_impressions_agree_in_all_that_is_read(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,clicked\na,x,1,0\na,x,1,1\na,x,1,0\na,x,1,1\nb,y,1,1\n"
    columns = Columns(clicked="clicked")
    logs = read_logs([write(tmp_path / "a.csv", text)], columns, drop_duplicates=True)
    assert logs.impressions is not None and logs.impressions["clicked"].to_list() == [False, True, True]
    assert logs.interactions.rows() == [("a", "x", 1), ("b", "y", 1)] and logs.duplicates_dropped == 2


def test_messages_never_hold_control_characters() -> None:
    assert str(UserError("a\x1b[2J\x00\u202eb")) == r"a\x1b[2J\x00\u202eb"


def test_a_look_at_a_log(tmp_path: Path) -> None:
    lines = ["Customer ID;Product;created_at;price"]
    lines += [f"c{n % 4};p{n % 5};2024-01-{1 + n // 4:02d};1,5" for n in range(40)]
    lines += [lines[1], ";p1;2024-01-01;1", "c1;p1;never;1"]
    actual = preview_logs([write(tmp_path / "shop.csv", "\n".join(lines))])
    assert actual["mapping"] == {"user": "Customer ID", "item": "Product", "timestamp": "created_at"}
    types = ["text", "text", "dates and times", "numbers with decimal commas"]
    assert [column["type"] for column in actual["columns"]] == types
    assert actual["kind"] == "interactions" and actual["missing"] == []
    counts = actual["counts"]
    assert (counts["rows"], counts["interactions"], counts["users"], counts["items"]) == (43, 41, 4, 5)
    assert (counts["exact_duplicates"], counts["repeats_of_user_and_item"]) == (1, 21)
    assert sorted((entry["rows"], entry["first_row"]) for entry in actual["lost"]) == [(1, 42), (1, 43)]
    json.dumps(actual)


def test_roles_need_names_and_values(tmp_path: Path) -> None:
    text = "uid,thing,time,clicked,rank\n" + "".join(f"{n % 3},{n},soon,{n % 2},{n}\n" for n in range(12))
    path = write(tmp_path / "a.csv", text)
    actual = preview_logs([path])
    assert {role: entry["column"] for role, entry in actual["roles"].items()} == {
        "user": "uid",
        "clicked": "clicked",
        "slot": "rank",
    }
    assert actual["missing"] == ["item"]
    output = preview_logs([path], given={"item": "thing"})
    assert output["kind"] == "impressions" and output["counts"]["impressions"] == 12
    with pytest.raises(UserError, match="no column 'nothing'; the columns are uid"):
        preview_logs([path], given={"item": "nothing"})


@pytest.mark.parametrize("kind", [pl.Datetime("us", "UTC"), pl.Datetime("ms"), pl.Date])
def test_a_column_of_parquet_dates_is_the_time_whatever_its_name(tmp_path: Path, kind: pl.DataType) -> None:
    days = pl.Series([20454, 20455, 20456]).cast(pl.Date).cast(kind)
    pl.DataFrame({"customer": ["u1", "u1", "u2"], "sku": ["a", "b", "a"], "shown_at": days}).write_parquet(
        tmp_path / "log.parquet"
    )
    preview = preview_logs([tmp_path / "log.parquet"])
    assert preview["roles"]["timestamp"]["column"] == "shown_at" and preview["missing"] == []


def test_the_only_column_of_dates_is_the_time_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("customer,sku,when\nu1,a,2026-01-01T10:00\nu1,b,2026-01-02\nu2,a,2026-01-03\n", encoding="utf-8")
    roles = preview_logs([path])["roles"]
    assert (
        roles["timestamp"]["column"] == "when" and roles["timestamp"]["reason"] == "the only column of dates and times"
    )
    path.write_text(
        "customer,sku,when,shipped\nu1,a,2026-01-01,2026-01-02\nu1,b,2026-01-02,2026-01-05\n", encoding="utf-8"
    )
    assert "timestamp" not in preview_logs([path])["roles"]  # one of two would be a guess


def test_a_look_reads_no_more_than_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adagrpo.readers.chunks.CHUNK_BYTES", 1000)
    draw = random.Random(0)
    rows = "".join(f"{draw.randrange(9)},{draw.randrange(9)},{n}\n" for n in range(10_000))
    path = write(tmp_path / "a.csv", "user_id,item_id,timestamp\n" + rows)
    first = preview_logs([path], 500)
    assert first["counts"]["rows"] == 500
    assert (first["understood"]["time"]["first"], first["understood"]["time"]["last"]) == (0, 499)
    assert format_lines(first["understood"])[0] == "a.csv: CSV, separated by commas, UTF-8, the first 500 rows"
    assert preview_logs([path], None)["counts"]["rows"] == 10_000
    # a bad row beyond the ones that were asked for is none
    bad = write(tmp_path / "b.csv", "user_id,item_id,timestamp\n" + "1,2,3\n" * 500 + "1,,3\n")
    assert preview_logs([bad], 500)["lost"] == []
    assert [entry["rows"] for entry in preview_logs([bad], 501)["lost"]] == [1]


def test_a_position_is_an_order_or_beside_clicks_a_slot(tmp_path: Path) -> None:
    rows = [(n % 3, n, n // 3, n % 2) for n in range(12)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "position", "clicked"], orient="row")
    table.drop("clicked").write_csv(tmp_path / "a.csv")
    table.with_columns(ts=pl.lit(5)).write_csv(tmp_path / "b.csv")
    assert preview_logs([tmp_path / "a.csv"])["mapping"] == {"user": "user_id", "item": "item_id", "order": "position"}
    assert preview_logs([tmp_path / "b.csv"])["mapping"]["slot"] == "position"


def test_a_role_is_known_by_the_last_fields_of_a_deep_name(tmp_path: Path) -> None:
    path = tmp_path / "views.jsonl"
    path.write_text('{"user": {"id": "u"}, "event": {"item": {"id": "i"}}, "ts": "2025-01-01T00:00:00Z"}\n')
    roles = preview_logs([path])["roles"]
    assert {role: entry["column"] for role, entry in roles.items()} == {
        "user": "user.id",
        "item": "event.item.id",
        "timestamp": "ts",
    }


def test_a_log_without_rows_is_no_question_of_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.csv: no rows; a log has at least one interaction"):
        preview_logs([write(tmp_path / "a.csv", "user_id,item_id,timestamp\n")])


def test_a_log_of_which_nothing_can_be_read_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "user_id;item_id;rating\n" + "u;i;3,5\n" * 4)
    with pytest.raises(UserError, match=r"4 rejected.*the first of those rejected is row 1: rating is '3,5'"):
        preview_logs([path], given={"user": "user_id", "item": "item_id", "rating": "rating", "order": "rating"})


@pytest.mark.parametrize("kind", [pl.Binary, pl.Duration])
@pytest.mark.parametrize("role", ["timestamp", "clicked", "rating", "event"])
def test_a_column_of_bytes_or_durations_has_no_role(tmp_path: Path, role: str, kind: Any) -> None:
    values = pl.Series(role, ["a", "b", "c"] if kind == pl.Binary else [1, 2, 3]).cast(kind)
    table = {"user_id": [1, 1, 2], "item_id": [1, 2, 1], "when": [1, 2, 3]}
    pl.DataFrame(table).with_columns(values).write_parquet(tmp_path / "a.parquet")
    assert role not in preview_logs([tmp_path / "a.parquet"])["roles"]
    columns = {"timestamp": "when"} | {role: role}
    with pytest.raises(UserError, match=rf"column '{role}' is of type {kind.__name__}.*, expected"):
        read_logs([tmp_path / "a.parquet"], Columns(**columns))


def test_a_time_of_day_is_no_time(tmp_path: Path) -> None:
    days = pl.Series("date", [19_000, 19_001, 19_001], dtype=pl.Int32).cast(pl.Date)
    clock = (pl.Series("time", [7_200, 3_600, 7_200]) * 1_000_000_000).cast(pl.Time)
    pl.DataFrame({"user_id": [1, 1, 2], "item_id": [1, 2, 1], "time": clock, "date": days}).write_parquet(
        tmp_path / "a.parquet"
    )
    assert preview_logs([tmp_path / "a.parquet"])["roles"]["timestamp"]["column"] == "date"
    for role in ("timestamp", "order"):
        with pytest.raises(UserError, match=r"row 1: time is '02:00:00.*', expected a number"):
            read_logs([tmp_path / "a.parquet"], Columns(**{role: "time"}))


def test_a_time_unlike_the_others_is_named_with_the_format_of_the_column(tmp_path: Path) -> None:
    other = "01.04.2026 22:49:18"
    for written, form in (("2026-04-01T10:00:00", "ISO 8601 from 1970 on"), ("1775037600", "a number >= 0")):
        times = [other, *[written] * 2, other] if form[0] == "I" else [written, written, other, "2026-04-02"]
        rows = "".join(f"u,i{n},{time}\n" for n, time in enumerate(times))
        (tmp_path / "a.csv").write_text("user_id,item_id,created_at\n" + rows)
        row = times.index(other) + 1
        said = f"row {row}: created_at is '{other}', expected {form}, as in the rest of the column ({written}) (the"
        with pytest.raises(UserError) as refused:
            read_logs([tmp_path / "a.csv"], Columns(timestamp="created_at"))
        assert said in str(refused.value)


@pytest.mark.parametrize("other", ["01.04.2026 22:49:18", "04/01/2026", "Wed, 01 Apr 2026 22:49:18 +0200"])
def test_a_column_of_times_in_no_format_that_is_read_is_named_with_its_first_value(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.csv").write_text("user_id;item_id;created_at\n" + f"u;i;\nu;j;{other}\n" * 4)
    expected = f"row 2: created_at is '{other}', expected a number >= 0 or a time such as 2024-01-31T23:59:59Z"
    preview = preview_logs([tmp_path / "a.csv"])
    assert preview["missing"] == ["timestamp"] and preview["unread_time"] == expected
    with pytest.raises(UserError) as refused:
        recipe_text(preview, "a")
    assert str(refused.value) == f"{tmp_path / 'a.csv'}, {expected}"


def test_where_some_times_are_read_the_first_other_one_is_named(tmp_path: Path) -> None:
    times = ["2026-04-01"] * 4 + ["01.04.2026"] * 4
    (tmp_path / "a.csv").write_text("user_id,item_id,day\n" + "".join(f"u,i,{time}\n" for time in times))
    said = "row 5: day is '01.04.2026', expected ISO 8601 from 1970 on, as in the rest of the column (2026-04-01)"
    assert preview_logs([tmp_path / "a.csv"])["unread_time"] == said


def test_lists_are_shown_as_lists(tmp_path: Path) -> None:
    table = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2], "tags": [["a", "b"], []]}
    pl.DataFrame(table).write_parquet(tmp_path / "a.parquet")
    column = next(one for one in preview_logs([tmp_path / "a.parquet"])["columns"] if one["name"] == "tags")
    assert column["examples"] == ["['a', 'b']", "[]"]


LISTED: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: f"[{n % 7}, {n % 11}]",
    "quoted in brackets": lambda n: f"['a{n % 7}' 'b{n}']",
    "parentheses": lambda n: f"({n % 7}, {n})",
    "commas": lambda n: ",".join(f"i{n * k % 31}" for k in range(1, 3 + n % 5)),
    "commas and blanks": lambda n: ", ".join(f"i{n * k % 31}" for k in range(1, 3 + n % 5)),
    "semicolons": lambda n: ";".join(str(n * k % 31) for k in range(1, 3 + n % 5)),
    "blanks": lambda n: " ".join(f"N{n * k % 31}" for k in range(1, 3 + n % 5)),
    "no item twice": lambda n: ",".join(f"i{n}x{k}" for k in range(2 + n % 3)),
    "pairs": lambda n: f"i{n},i{n + 1 + n % 2}",
    "as many in each": lambda n: f"i{n % 29},i{n % 31},i{n * n % 23}",
}
SINGLE: dict[str, Callable[[int], str]] = {
    "a title with a comma": lambda n: f"Film {n % 40}, The",
    "titles of words": lambda n: " ".join(("Lost", "Silent", "City", "of", "Angels")[: 2 + n % 4]) + " again" * (n % 3),
    "titles in brackets": lambda n: f"[Untitled {n}]" if n % 3 == 0 else f"Film {n}",
    "one in brackets": lambda n: f"[{n % 40}]",
    "a composite id": lambda n: f"brand{n % 7},model{n % 11},{n}",
    "a composite id with a part that some lack": lambda n: f"brand{n % 7},model{n}" + ",long" * (n % 3 == 0),
    "items that come again": lambda n: f"{n % 20},{n % 4}" + f",{n % 5}" * (n % 2),
    "coordinates": lambda n: f"{50 + n / 1000},{4 + n / 999}",
    "dates": lambda n: f"2024-01-{n % 28:02} item {n}",
}


def listed(tmp_path: Path, item: Callable[[int], str], kind: str) -> Path:
    """A log of ninety rows, two empty items first."""
    rows = [{"user_id": f"u{n}", "item_id": item(n) if n > 1 else "", "timestamp": n} for n in range(90)]
    table, path = pl.DataFrame(rows), tmp_path / f"a.{kind}"
    write = {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[kind]
    write(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", LISTED)
def test_items_that_are_lists_of_text_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = listed(tmp_path, LISTED[name], kind)
    assert preview_logs([path])["lists"]
    with pytest.raises(UserError) as refused:
        read_logs([path], Columns(timestamp="timestamp"), max_bad_rows=2)
    value = LISTED[name](2)
    said = f"a.{kind}, row 3: item_id is '{value}', a list, as most of its values are; a row is one item: write a row"
    assert said in str(refused.value)


@pytest.mark.parametrize("name", SINGLE)
def test_ids_that_hold_commas_or_brackets_are_ids(tmp_path: Path, name: str) -> None:
    path = listed(tmp_path, SINGLE[name], "csv")
    assert not preview_logs([path])["lists"]
    logs = read_logs([path], Columns(timestamp="timestamp"), max_bad_rows=2)
    assert logs.interactions["item_id"].to_list() == [SINGLE[name](n) for n in range(2, 90)]


def test_a_column_of_lists_is_said_not_to_hold_one_id_in_each_row(tmp_path: Path) -> None:
    table = {"user_id": [1, 2], "item_id": [["a", "b"], ["c"]], "timestamp": [1, 2]}
    pl.DataFrame(table).write_parquet(tmp_path / "a.parquet")
    found = preview_logs([tmp_path / "a.parquet"])
    assert found["passed_over"] == [{"column": "item_id", "role": "item", "needs": "one id in each row"}]
    with pytest.raises(UserError, match=r"item_id' is of type List\(String\), .*: write a row for each item"):
        read_logs([tmp_path / "a.parquet"], Columns(timestamp="timestamp"))


def test_times_of_a_shop_are_known_by_their_names(tmp_path: Path) -> None:
    for name in ("ordered_at", "shown_at"):  # numbers, which only a name tells from others
        text = f"customer_id,sku,{name}\n" + "".join(f"{n % 3},{n},{1_700_000_000 + n}\n" for n in range(12))
        assert preview_logs([write(tmp_path / f"{name}.csv", text)])["mapping"]["timestamp"] == name


def test_a_separator_within_quotes_of_a_header_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('user;item;"at, roughly"\n1,2;3,4;5,6\n', encoding="utf-8")
    assert csv_header(path) == (["user", "item", "at, roughly"], ";")
