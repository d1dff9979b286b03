"""Logs and item tables: what is accepted is right, what is refused is named, and nothing is lost."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.logs.items import read_items
from adagrpo.errors import UserError


def write(path: Path, text: str | bytes) -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# Reading


def test_the_three_formats_give_the_same_table(tmp_path: Path) -> None:
    table = pl.DataFrame({"user_id": [2, 1, 2], "item_id": ["b", "a", "c"], "timestamp": [30, 10, 20]})
    table.write_csv(tmp_path / "a.csv")
    table.write_parquet(tmp_path / "a.parquet")
    table.write_ndjson(tmp_path / "a.jsonl")
    write(tmp_path / "a.csv.gz", (tmp_path / "a.csv").read_bytes())
    for name in ("a.csv", "a.csv.gz", "a.parquet", "a.jsonl"):
        logs = read_logs([tmp_path / name], Columns(timestamp="timestamp"))
        assert logs.interactions.equals(table), name
        assert (logs.rows_read, logs.rows_filtered, len(logs.rejects)) == (3, 0, 0)
        assert logs.impressions is None and logs.time_key == "timestamp"


BAD = [  # user, item, timestamp, clicked, rating, part of the reason
    (None, "i1", "1", "1", "4", "u is empty, expected an id"),
    ("  ", "i1", "1", "1", "4", "u is empty"),
    ("u1", None, "1", "1", "4", "i is empty"),
    ("u1", "", "1", "1", "4", "i is empty"),
    ("u1", "i1", None, "1", "4", "t is empty, expected a number >= 0"),
    ("u1", "i1", "yesterday", "1", "4", "t is 'yesterday', expected a number >= 0"),
    ("u1", "i1", "-5", "1", "4", "t is '-5'"),
    ("u1", "i1", "nan", "1", "4", "t is 'nan'"),
    ("u1", "i1", "inf", "1", "4", "t is 'inf'"),
    ("u1", "i1", "1e999", "1", "4", "t is '1e999'"),
    ("u1", "i1", "1", "maybe", "4", "c is 'maybe', expected 1, 0, true, false or nothing"),
    ("u1", "i1", "1", "1", "good", "r is 'good', expected a number"),
    ("u\ufffd", "i1", "1", "1", "4", "u is 'u\ufffd', expected text that can be decoded"),
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_bad_row_is_found_and_none_is_lost(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    good = [(f"u{rng.integers(9)}", f"i{rng.integers(9)}", str(t), str(t % 2), "4") for t in range(200)]
    rows = {int(row): BAD[k] for k, row in enumerate(rng.permutation(200)[: len(BAD)])}
    mixed = [rows[n][:5] if n in rows else record for n, record in enumerate(good)]
    table = pl.DataFrame(mixed, schema=dict.fromkeys("uitcr", pl.String), orient="row")
    path = tmp_path / f"log.{suffix}"
    {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[suffix](path)
    columns = Columns(user="u", item="i", timestamp="t", clicked="c", rating="r")
    logs = read_logs([path], columns, max_bad_rows=len(BAD))
    assert logs.rejects["row"].to_list() == [row + 1 for row in sorted(rows)]
    assert set(logs.rejects["file"]) == {str(path)}
    for row, reason in logs.rejects.select(pl.col("row") - 1, "reason").rows():
        assert rows[row][5] in reason, row
    assert logs.impressions is not None
    assert len(logs.impressions) == 200 - len(BAD)
    accepted = [record for n, record in enumerate(good) if n not in rows]
    assert len(logs.interactions) == sum(record[3] == "1" for record in accepted)
    assert logs.rows_read == 200 and logs.rows_filtered == 0
    with pytest.raises(UserError) as error:
        read_logs([path], columns, max_bad_rows=len(BAD) - 1)
    first = min(rows)
    assert f"{path}, row {first + 1}: " in str(error.value)
    assert f"the first of {len(BAD)} bad rows" in str(error.value) and "\n" not in str(error.value)


def test_typed_parquet_values(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "user_id": [1.0, 2.0, float("nan"), 1.5],  # what pandas makes of integers beside a missing one
            "item_id": [5, 6, 7, 8],
            "timestamp": [datetime(1970, 1, 2, tzinfo=UTC)] * 4,
            "rating": [float("nan"), 4.0, 4.0, 4.0],
        },
        schema_overrides={"item_id": pl.UInt64},
    )
    table.write_parquet(tmp_path / "a.parquet")
    columns = Columns(timestamp="timestamp", rating="rating")
    logs = read_logs([tmp_path / "a.parquet"], columns, max_bad_rows=2)
    assert logs.interactions.rows() == [(1, 5, 86400, None), (2, 6, 86400, 4.0)]
    assert logs.interactions.dtypes == [pl.Int64, pl.Int64, pl.Int64, pl.Float64]
    assert logs.rejects["row"].to_list() == [3, 4]
    table.with_columns(item_id=pl.lit([1])).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="column 'item_id' is of type List"):
        read_logs([tmp_path / "b.parquet"], columns)


def test_numbers_that_differ_are_different_ids(tmp_path: Path) -> None:
    numbers = ["12345678901234567890123", "12345678901234567890124", "1e3", "5.0", '"5.0"', "5", '"1e3"', "2.5"]
    lines = [f'{{"user_id": {number}, "item_id": 1, "timestamp": 1}}\n' for number in numbers]
    logs = read_logs([write(tmp_path / "a.jsonl", "".join(lines))], Columns(), max_bad_rows=1)
    known = ["12345678901234567890123", "12345678901234567890124", "1000", "5", "5.0", "5", "1e3"]
    assert logs.interactions["user_id"].to_list() == known
    assert logs.rejects["reason"].to_list() == ["user_id is 2.5, expected a whole number or text"]
    decimals = pl.Series("user_id", ["1.50", "1.20", "3.00", str(2**63), "-7"], dtype=pl.String)
    table = pl.DataFrame({"user_id": decimals, "item_id": 1, "timestamp": 1})
    table.cast({"user_id": pl.Decimal(30, 2), "item_id": pl.Decimal(3, 0)}).write_parquet(tmp_path / "b.parquet")
    logs = read_logs([tmp_path / "b.parquet"], Columns(), max_bad_rows=2)
    assert logs.interactions.select("user_id", "item_id").rows() == [("3", 1), (str(2**63), 1), ("-7", 1)]
    assert logs.rejects["row"].to_list() == [1, 2]


def test_csv_records_that_are_not_lines(tmp_path: Path) -> None:
    text = (
        "user_id,item_id,timestamp,note\r\n"
        'a,x,1,"two\nlines, and a ""quote"""\r\n'  # legal
        "b,y,2,plain,surplus\r\n"  # row 1
        "\r\n"  # row 2
        "c,z,3,\r\n"
        "d,x\r\n"  # row 4
        'e,"y,5,unclosed\r\n'  # row 5
        "f,z,6,kept\r\n"
        'g,"x,7,unclosed\r\n'  # row 7: without counting lines, rows 5 to 7 would be one
        "h,y,8,\xff,,\r\n"
    ).encode("latin-1")
    logs = read_logs([write(tmp_path / "a.csv", text)], Columns(timestamp="timestamp"), max_bad_rows=9)
    assert logs.interactions.rows() == [("a", "x", 1), ("c", "z", 3), ("f", "z", 6), ("h", "y", 8)]
    reasons = dict(logs.rejects.select(pl.col("row") - 1, "reason").rows())
    assert list(reasons) == [1, 2, 4, 5, 7]
    assert reasons[1] == "has 5 fields, the header names 4"
    assert reasons[5] == reasons[7] == "has a quote that is not closed or not escaped"
    assert logs.rows_read == 9


def test_csv_with_surplus_fields_only(tmp_path: Path) -> None:
    text = '\ufeffuser_id,item_id,timestamp\na,x,1\nb,y,2,3\n"c,c",z,3\nd,x,4,\n'
    logs = read_logs([write(tmp_path / "a.csv", text)], Columns(), max_bad_rows=1)
    assert logs.interactions["user_id"].to_list() == ["a", "c,c", "d"]
    assert logs.rejects.rows() == [(str(tmp_path / "a.csv"), 2, "has 4 fields, the header names 3")]


def test_jsonl_lines_that_are_not_objects(tmp_path: Path) -> None:
    good = {"user id": "a", "it'em": 1, "timestamp": 1.5}
    lines = [json.dumps(good), '{"user id": "a"', "", "[1]", "[" * 5000, json.dumps(good | {"timestamp": None})]
    path = write(tmp_path / "a.ndjson", "\n".join(lines))
    logs = read_logs([path], Columns(user="user id", item="it'em"), max_bad_rows=4)
    assert logs.interactions.rows() == [("a", 1, 1.5)]
    assert logs.rejects["row"].to_list() == [2, 3, 4, 5]  # the empty line is no row
    assert logs.rejects["reason"][0].startswith("not a JSON object with any of the fields")
    assert logs.rejects["reason"][3] == "timestamp is empty, expected a number >= 0, as in the rest of the column (1.5)"


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "2", "-3"], [1, 2, -3]),
        (["1", "x"], ["1", "x"]),
        (["7", "007"], ["7", "007"]),  # they are two users
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
    ],
)
def test_ids_are_integers_only_if_nothing_is_lost(tmp_path: Path, ids: list[str], expected: list[object]) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"{user},i,1\n" for user in ids)
    logs = read_logs([write(tmp_path / "a.csv", text)], Columns())
    assert logs.interactions["user_id"].to_list() == expected


def test_several_files_agree_on_types(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "user_id,item_id,timestamp\n1,1,1\n")
    pl.DataFrame({"user_id": ["x"], "item_id": [2], "timestamp": [0.5]}).write_parquet(tmp_path / "b.parquet")
    logs = read_logs([tmp_path / "a.csv", tmp_path / "b.parquet"], Columns())
    assert logs.interactions.rows() == [("1", 1, 1.0), ("x", 2, 0.5)]


def test_timestamps_in_nanoseconds_keep_their_digits(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n1,1,1700000000000000001\n1,1,inf\n1,2,1700000000000000002\n"
    logs = read_logs([write(tmp_path / "a.csv", text)], Columns(), max_bad_rows=1)
    assert logs.interactions["timestamp"].to_list() == [1700000000000000001, 1700000000000000002]


def test_filters_are_counted(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,e,r\n1,1,1,buy,5\n1,2,2,view,5\n1,3,3,buy,2\n1,4,4,,5\n1,5,5,buy,\n1,6,x,view,1\n"
    path = write(tmp_path / "a.csv", text)
    columns = Columns(event="e", rating="r")
    logs = read_logs([path], columns, keep_events=["buy"], min_rating=4, max_bad_rows=1)
    assert logs.interactions.rows() == [(1, 1, 1, 5.0)]
    assert (logs.rows_read, logs.rows_filtered, len(logs.rejects)) == (6, 4, 1)
    with pytest.raises(UserError, match=r"no interaction among 6 rows: 1 rejected, 5 filtered"):
        read_logs([path], columns, keep_events=["sell"], max_bad_rows=1)
    for arguments in ({"keep_events": ["buy"]}, {"min_rating": 1.0}):
        with pytest.raises(UserError, match=r"needs data\.columns\."):
            read_logs([path], Columns(), **arguments)  # type: ignore[arg-type]


def test_impression_logs(tmp_path: Path) -> None:
    text = (
        "user_id,item_id,timestamp,clicked,slot,propensity,rating\n"
        "1,1,1,TRUE,0,0.5,4\n1,2,1,0,1,,\n1,3,2,,,,5\n1,4,3,false,2.0,1,\n1,5,4,1,0,0.5,1\n"
        "1,6,5,1,0.5,0.5,\n1,7,6,1,0,1.5,\n"
    )
    columns = Columns(timestamp="timestamp", rating="rating", clicked="clicked", slot="slot", propensity="propensity")
    logs = read_logs([write(tmp_path / "a.csv", text)], columns, min_rating=3, max_bad_rows=2)
    assert logs.interactions["item_id"].to_list() == [1, 3]
    assert logs.impressions is not None
    expected = [(1, 1, 1, True, 0, 0.5), (1, 2, 1, False, 1, None), (1, 4, 3, False, 2, 1.0)]
    assert (
        logs.impressions.rows() == expected
    )  # the last chosen one is rated too low, what was only shown has no rating
    assert logs.impressions.schema["slot"] == pl.Int32 and logs.rows_filtered == 1
    assert [reason.partition(",")[0] for reason in logs.rejects["reason"]] == ["slot is '0.5'", "propensity is '1.5'"]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("user_id,item,timestamp\n1,1,1\n", Columns(), "no column 'item_id'; did you mean 'item'?"),
        ("user_id,item_id,when\n1,1,1\n", Columns(), "which column orders .* user_id, item_id, when"),
        (
            "user_id,item_id,position,clicked\n1,1,0,1\n",
            Columns(clicked="clicked", slot="position"),  # a place in the slate is no order
            "which column orders .* user_id, item_id, position, clicked",
        ),
        ("user_id,item_id,t\n1,1,1\n", Columns(timestamp="t", order="t"), "timestamp and order are both given"),
        ("user_id,item_id,timestamp\n", Columns(), "no rows"),
        ("", Columns(), "the file is empty"),
    ],
)
def test_unusable_files(tmp_path: Path, text: str, columns: Columns, message: str) -> None:
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=message) as error:
        read_logs([path], columns)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_not_logs(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "user_id,item_id,timestamp\n1,1,1\n")
    write(tmp_path / "cut.csv.gz", "user_id,item_id,timestamp\n1,1,1\n")
    (tmp_path / "cut.csv.gz").write_bytes((tmp_path / "cut.csv.gz").read_bytes()[:-12])
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "a.yaml", "name: x")
    messages = {
        "a.yaml": "a recipe, which `adagrpo run` reads; give a file",
        "none.csv": "no such file",
        "a.txt": "not a file of a known kind",
        ".": "a folder",
        "a.parquet": "cannot be read as Parquet",
        "cut.csv.gz": "cannot be read as CSV",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message) as error:
            read_logs([tmp_path / name], Columns(timestamp="timestamp"))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no file given"):
        read_logs([], Columns())


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "jsonl", "parquet"])
def test_accepted_filtered_and_rejected_are_what_was_read(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(7)
    rows = []
    for n in range(300):
        user = None if rng.random() < 0.1 else str(rng.integers(20))
        time = "?" if rng.random() < 0.1 else str(n)
        rows.append((user, str(rng.integers(30)), time, ("buy", "view")[rng.integers(2)], str(rng.integers(1, 6))))
    table = pl.DataFrame(rows, schema=dict.fromkeys(("u", "i", "t", "e", "r"), pl.String), orient="row")
    path = tmp_path / f"log.{suffix}"
    {"j": table.write_ndjson, "p": table.write_parquet, "c": table.write_csv}[suffix[0]](tmp_path / "plain")
    write(path, (tmp_path / "plain").read_bytes())
    columns = Columns(user="u", item="i", timestamp="t", event="e", rating="r")
    logs = read_logs([path], columns, keep_events=["buy"], min_rating=3, max_bad_rows=300)
    good = [row for row in rows if row[0] is not None and row[2] != "?"]
    kept = [(int(u), int(i), int(t), float(r)) for u, i, t, e, r in good if e == "buy" and int(r) >= 3]
    assert logs.interactions.rows() == kept and 0 < len(kept) < len(good) < 300
    assert (logs.rows_read, logs.rows_filtered, len(logs.rejects)) == (300, len(good) - len(kept), 300 - len(good))


def test_a_long_log_of_records_that_are_not_lines(tmp_path: Path) -> None:
    records = [(f"u{n % 50}", f"two\nlines {n % 70}", n) for n in range(20_000)]
    pl.DataFrame(records, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "a.csv")
    logs = read_logs([tmp_path / "a.csv"], Columns())
    assert logs.interactions.rows() == records


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.parquet", "", "the file is empty"),
        ("a.csv.gz", "", "the file is empty"),
        ("a.jsonl", "[1]\n\nnothing\n", "no JSON object among the first 3 lines"),
        ("a.jsonl", '{"user": 1, "item_id": 2}\n', "no column 'user_id'; did you mean 'user'?"),
        ("a.csv", '"user\nid",item_id,timestamp\n1,2,3\n', "no column 'user_id'; did you mean 'user id'?"),
        ("a.csv", 'user_id,item_id,timestamp\n1,2,"3\n4"\n', r"a\.csv, row 1: timestamp is '3 4', expected a number"),
    ],
)
def test_what_is_wrong_takes_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_logs([write(tmp_path / name, text)], Columns(timestamp="timestamp"))
    assert str(tmp_path / name) in str(error.value) and len(str(error.value).splitlines()) == 1


# Item tables


def test_item_table(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "item_id": [3, 1, 2],
            "title": ["Soap", "", "Comb"],
            "parts": [["a", "b"], None, []],
            "brand": ["X", None, "Y"],
            "tags": [[10, 11, 12], [12], None],
            "words": [["w", None], [], None],
        }
    ).write_parquet(tmp_path / "items.parquet")
    names = pl.DataFrame({"attribute_id": [10, 11], "name": ["red", None]})
    names.write_parquet(tmp_path / "names.parquet")
    table = read_items(
        tmp_path / "items.parquet",
        text_columns=("title", "parts"),
        attribute_columns=("brand", "tags", "words"),
        attribute_names=tmp_path / "names.parquet",
    )
    assert table.rows() == [
        (3, "Soap a b", ["brand=X", "red", "attribute:11", "attribute:12", "w"]),
        (1, "", ["attribute:12"]),
        (2, "Comb", ["brand=Y"]),
    ]
    undecoded = read_items(tmp_path / "items.parquet", attribute_columns=("tags",))
    assert undecoded.row(0) == (3, "", ["attribute:10", "attribute:11", "attribute:12"])
    assert read_items(tmp_path / "items.parquet").row(1) == (1, "", [])


def test_item_table_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", "sku,title,size\na,Soap,7\nb,,\n")
    table = read_items(path, id_column="sku", text_columns=("title",), attribute_columns=("size",))
    assert table.rows() == [("a", "Soap", ["size=7"]), ("b", "", [])]
    path = write(tmp_path / "items.jsonl", '{"item_id": 1, "tags": ["x"], "n": 2}\n{"item_id": 2, "tags": null}\n')
    assert read_items(path, attribute_columns=("tags", "n")).rows() == [(1, "", ["x", "n=2"]), (2, "", [])]


def test_what_is_blank_or_no_number_is_no_attribute(tmp_path: Path) -> None:
    columns = {
        "item_id": [1, 2, 3],
        "tags": [["", None], [" ", "x"], []],
        "year": [float("nan"), 2001.5, None],
        "sizes": [[float("nan")], [1.5], None],
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "items.parquet")
    names = ("tags", "year", "sizes")
    table = read_items(tmp_path / "items.parquet", text_columns=names, attribute_columns=names, group_columns=("tags",))
    assert table["attributes"].to_list() == [[], ["x", "year=2001.5", "1.5"], []]
    assert [text.split() for text in table["text"]] == [[], ["x", "2001.5", "1.5"], []]
    assert table["groups"].to_list() == [[], ["tags=x"], []]
    lasting = pl.DataFrame({"item_id": [1], "length": [1]}).with_columns(pl.col("length").cast(pl.Duration))
    lasting.write_parquet(tmp_path / "lasting.parquet")
    with pytest.raises(UserError, match=r"column 'length' holds Duration.* is text, numbers, or lists of these"):
        read_items(tmp_path / "lasting.parquet", attribute_columns=("length",))


def test_item_tables_that_are_wrong(tmp_path: Path) -> None:
    twice = write(tmp_path / "twice.csv", "item_id\na\nb\nc\nb\n")
    with pytest.raises(UserError, match=r"twice\.csv, rows 2 and 4: both are item 'b'"):
        read_items(twice)
    missing = write(tmp_path / "missing.csv", "item_id,x\na,1\n,2\n")
    with pytest.raises(UserError, match=r"missing\.csv, row 2: item_id is empty"):
        read_items(missing)
    with pytest.raises(UserError, match="no column 'titel'"):
        read_items(missing, text_columns=("titel",))
    names = write(tmp_path / "names.csv", "item_id\na\n")
    with pytest.raises(UserError, match="attribute names are a Parquet file"):
        read_items(names, attribute_names=names)


def test_item_tables_that_are_not_tables(tmp_path: Path) -> None:
    messages = {
        "none.parquet": "no such file",
        "empty.csv": "the file is empty",
        "header.csv": "no rows; an item table has at least one item",
        "wide.csv": "row 1: has 3 fields, the header names 2",
        "near.csv": "no column 'item_id'; did you mean 'itemid'",
        "lines.csv": "rows 1 and 2: both are item 'a b'",
        "typed.jsonl": "row 1: item_id is of type list",
    }
    write(tmp_path / "empty.csv", "")
    write(tmp_path / "header.csv", "item_id,title\n")
    write(tmp_path / "wide.csv", "item_id,title\n1,a,surplus\n")
    write(tmp_path / "near.csv", "itemid,title\n1,a\n")
    write(tmp_path / "lines.csv", 'item_id\n"a\nb"\n"a\nb"\n')
    write(tmp_path / "typed.jsonl", '{"item_id": [1]}\n')
    for name, message in messages.items():
        with pytest.raises(UserError, match=message) as error:
            read_items(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and len(str(error.value).splitlines()) == 1
