"""Tables beside the logs: no row is lost in silence, and what cannot be read is named by file, row and column."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from adagrpo.data.logs.interactions import Columns, read_logs
from adagrpo.data.logs.items import read_items
from adagrpo.data.logs.preview import preview_items
from adagrpo.errors import UserError
from adagrpo.readers.chunks import read_table


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "rows",
    [
        '1,Lamp\n2,"Monitor 24" black"\n3,Chair\n4,"Monitor 27" white"\n',
        '1,Lamp\n2,"open\n3,Chair\n4,"closed"\n',
        "1,Lamp\n2,Monitor,24\n",
    ],
)
def test_a_malformed_record_of_a_csv_table_is_named(tmp_path: Path, rows: str) -> None:
    path = write(tmp_path / "items.csv", f"item_id,title\n{rows}")
    with pytest.raises(UserError, match=r"items\.csv, row 2: has (a quote that is not closed or|3 fields)"):
        read_items(path, text_columns=["title"])


def test_a_table_that_ends_within_a_row_is_refused(tmp_path: Path) -> None:
    """A new item would come without what was cut off; a row that leaves its last cells out is not cut off."""
    whole = 'item_id;title;brand\n1;Lamp;Lux\n2;Chair\n3;"two\nlines; one";Lux'
    options = {"text_columns": ["title"], "attribute_columns": ["brand"]}
    for end in ("", "\n"):
        assert len(read_items(write(tmp_path / "items.csv", whole + end), **options)) == 3
    packed = tmp_path / "items.csv.gz"
    for rest in ("\n4;Des", "\n4;", "\n4"):
        packed.write_bytes(gzip.compress((whole + rest).encode()))
        for path in (write(tmp_path / "items.csv", whole + rest), packed):
            with pytest.raises(UserError, match=r"row 4: has [12] of 3 fields and no end of a line"):
                read_items(path, **options)


def test_a_quote_within_a_field_is_a_character(tmp_path: Path) -> None:
    path = write(tmp_path / "items.csv", 'item_id,title\n1,24" tv\n2,"a ""b"", c"\n3,""\n')
    assert read_table(path, ["title", "item_id"]).rows() == [('24" tv', "1"), ('a "b", c', "2"), (None, "3")]


@pytest.mark.parametrize("ids", [["5.0", "7"], ['"5.0"', '"7"'], ["12345678901234567890123", "7"]])
def test_an_id_of_json_is_what_it_is_in_a_log(tmp_path: Path, ids: list[str]) -> None:
    lines = [f'{{"item_id": {item}, "user_id": 1, "timestamp": 1, "title": "a"}}' for item in ids]
    path = write(tmp_path / "both.jsonl", "\n\n".join(lines))
    logs = read_logs([write(tmp_path / "log.jsonl", "\n".join(lines))], Columns())
    assert read_items(path)["item_id"].to_list() == logs.interactions["item_id"].to_list()
    broken = write(tmp_path / "broken.jsonl", f'{lines[0]}\n\n{{"item_id": 1.5, "title": "a"}}\n')
    with pytest.raises(UserError, match=r"broken\.jsonl, row 2: item_id is 1\.5, expected a whole number or text"):
        read_items(broken)


def test_what_is_said_of_an_item_may_be_nested(tmp_path: Path) -> None:
    lines = [
        '{"product": {"sku": "a", "title": "Soap"}, "categories": [["Beauty", "Hair"], ["Beauty"]], "n": [[1], [2]]}',
        '{"product": {"sku": "b"}, "categories": [[]], "offers": [{"price": 1}], "made": {"in": "x"}}',
    ]
    path = write(tmp_path / "items.jsonl", "\n".join(lines))
    options = {"id_column": "product.sku", "text_columns": ["product.title", "n"]}
    found = read_items(path, **options, attribute_columns=["categories", "made.in"])
    assert found.rows() == [("a", "Soap 1 2", ["Beauty", "Hair", "Beauty"]), ("b", "", ["made.in=x"])]
    suggested = preview_items(path, "product.sku")
    assert "categories" in suggested["text"] + suggested["attributes"]
    read_items(path, id_column=suggested["id_column"], text_columns=suggested["text"])
    for name in ("offers", "made"):
        for kind in ("text_columns", "attribute_columns"):
            with pytest.raises(UserError, match=rf"items\.jsonl: column '{name}' holds .*Struct"):
                read_items(path, id_column="product.sku", **{kind: [name]})
    with pytest.raises(UserError, match=r"no column 'product.skew'; did you mean 'product.sku'\?"):
        read_table(path, ["product.skew"])


def test_arrays_of_parquet_are_lists(tmp_path: Path) -> None:
    table = pl.DataFrame({"item_id": [1, 2], "tags": [["x", "y"], None]}, schema_overrides={"tags": pl.Array(str, 2)})
    table.with_columns(made=pl.struct(at=pl.lit("z"))).write_parquet(tmp_path / "items.parquet")
    found = read_items(tmp_path / "items.parquet", text_columns=["tags"], attribute_columns=["tags", "made.at"])
    assert found.rows() == [(1, "x y", ["x", "y", "made.at=z"]), (2, "", ["made.at=z"])]


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path / "items1.jsonl", '{"item_id": "other"}\n')
    path = write(tmp_path / "items[1].jsonl", '{"item_id": "own"}\n')
    assert read_items(path)["item_id"].to_list() == ["own"]
